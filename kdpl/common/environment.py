"""The environment of a result: versions, code, processor, and which Dassl is in use."""

import platform
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

VERSION = "0.2.0"  # of KDPL
PACKAGE = Path(__file__).resolve().parents[1]
BUNDLED_ENGINE = PACKAGE / "fallback"


def dassl_in_use() -> str:
    """Return one line naming the Dassl in use: the installed one or the bundled engine."""
    folder = Path(find_spec("dassl").origin).parent
    return "Dassl: bundled engine of KDPL" if folder.parent == BUNDLED_ENGINE else f"Dassl: installed, {folder}"


def versions() -> dict[str, str | None]:
    """Return the versions of Python, PyTorch, kdpl and Dassl ("bundled" for the bundled engine)."""
    dassl = "bundled" if "bundled" in dassl_in_use() else version_of("dassl")
    return {"python": platform.python_version(), "torch": version_of("torch"), "kdpl": VERSION, "dassl": dassl}


@lru_cache
def libraries() -> dict[str, str | None]:
    """Return the versions of the other packages that numbers come from, and a digest of KDPL's own code."""
    import hashlib

    names = ("torchvision", "pillow", "numpy", "open_clip_torch", "timm", "transformers")
    folders = {PACKAGE, *(Path(find_spec(f"kdpl.{name}").origin).parent for name in ("trainers", "datasets"))}
    code = hashlib.sha256()
    for folder in sorted(folders):
        for file in sorted(folder.rglob("*.py")):
            code.update(f"{file.relative_to(folder)}\n".encode() + file.read_bytes())
    return {**{name: version_of(name) for name in names}, "code": code.hexdigest()[:10]}


@lru_cache
def processor() -> str:
    """Return the kind of CPU, such as "Intel(R) Xeon(R) Platinum 8481C"; empty if the system does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())


@lru_cache
def git_state() -> str | None:
    """Return the short commit of kdpl's checkout, with "-dirty" if files were changed; None outside a checkout."""
    import subprocess

    if not (PACKAGE.parent / ".git").exists():
        return None
    command = ["git", "-C", str(PACKAGE.parent), "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def version_of(package: str) -> str | None:
    """Return the version of an installed package; None without it."""
    from importlib import metadata  # slow to import, like subprocess above: `import kdpl` needs neither

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
