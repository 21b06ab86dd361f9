"""The package as others get it: what is in sdist and wheel, that it works far from the clone, and what type checkers see."""

import csv
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from fnmatch import fnmatch
from pathlib import Path

import pytest
from support import ROOT
from support.package import FILES, FOLDERS, LEFT_OUT, build, environment

from kdpl.__main__ import COMMANDS
from kdpl.common.environment import VERSION

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """An sdist, and the wheel that is built from it."""
    pytest.importorskip("setuptools", "77")
    return build(tmp_path_factory.mktemp("package"))


@pytest.fixture(scope="module")
def python(built, tmp_path_factory):
    """The Python of an environment in which that wheel is installed."""
    pytest.importorskip("pip")
    return environment(tmp_path_factory.mktemp("environment"), built[1])


@pytest.fixture
def run(python, tmp_path):
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    env |= {"OMP_NUM_THREADS": "1", "KDPL_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}

    def run(*words):
        words = [str(python), *words] if words[0] == "-c" else [str(python.with_name("kdpl")), *words]
        return subprocess.run(words, capture_output=True, text=True, check=False, cwd=tmp_path, env=env, timeout=500)

    return run


def test_sdist_and_wheel_hold_every_file_of_the_package_and_no_other(built):
    sdist, wheel = built
    expected = {
        f"{place}/{path.relative_to(ROOT / folder).as_posix()}": f"{folder}/{path.relative_to(ROOT / folder).as_posix()}"
        for folder, place in FOLDERS.items()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and not any(fnmatch(part, pattern) for part in path.parts for pattern in LEFT_OUT)
    }
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/")]
        about = {name.partition(".dist-info/")[2]: archive.read(name) for name in names if ".dist-info/" in name}
    assert {name for name in names if ".dist-info/" not in name} == set(expected)
    assert {"kdpl/py.typed", "kdpl/configs/datasets/image_folder.yaml", "kdpl/datasets/embedded/emoji_student.safetensors"} <= {
        *expected
    }
    assert f"\nVersion: {VERSION}\n" in about["METADATA"].decode() and wheel.name == f"kdpl-{VERSION}-py3-none-any.whl"
    licences = {Path(name).name for name in about if name.startswith("licenses/")}
    assert licences == {"LICENSE", *(f"LICENSE-{art}.txt" for art in ("EMOJIONE", "FLUENT-EMOJI", "NOTO", "TWEMOJI"))}
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames() if archive.getmember(name).isfile()}
    generated = {name for name in inside if name.startswith("kdpl.egg-info/")} | {"PKG-INFO", "setup.cfg"}
    assert inside - generated == {*expected.values(), *FILES}
    assert max(sdist.stat().st_size, wheel.stat().st_size) < 16e6


TINY = ("--seeds", "1", "--shots", "1", "--cfg", "emoji", "--trainer", "CoOp")
SHORT = ("OPTIM.MAX_EPOCH", "1", "OPTIM.WARMUP_EPOCH", "-1")


def test_every_command_works_from_the_sdists_wheel_far_from_the_clone(run, python, tmp_path):
    code = "import kdpl, kdpl.config.command_line as c; print(kdpl.__version__, kdpl.__file__, c.CONFIGS)"
    version, *where = run("-c", code).stdout.split()
    assert version == VERSION and all(Path(path).is_relative_to(python.parents[1]) for path in where)
    used = set()

    def done(*words, status=0):
        result = run(*words)
        used.add(words[0])
        assert result.returncode == status, f"{words}: {result.stdout}{result.stderr}"
        return result.stdout + result.stderr

    fitted = done("fit", "--demo", "--quick", "--quiet", "-o", "demo")
    assert "Did it help?" in fitted and "kdpl predict demo/prompts demo/new_photos" in fitted
    assert "480 images" in done("predict", "demo/prompts", "demo/new_photos", "--csv", "p.csv", "--quiet")
    with open(tmp_path / "p.csv", encoding="utf-8", newline="") as file:
        rows = [f"{row['path']},{row['name']}" for row in csv.DictReader(file)][:20]
    (tmp_path / "checked.csv").write_text("\n".join(["path,label", *rows]))
    assert "100.0 % of 20 photos" in done("eval", "demo/prompts", "--labels", "checked.csv")
    done("refit", "demo/prompts", "demo/names.txt", "--quiet", "-o", "again")
    done("export", "demo/prompts", "--head", "head.safetensors")
    done("names", "demo/photos", "--teacher", "emoji_teacher", "--vocabulary", "demo/names.txt", "-o", "proposed.txt")
    assert "ViT-B-32" in done("models", "vit-b-32")
    assert "missing" in done("prepare", "--check", "--root", "data", "EuroSAT", status=1)
    assert "Hub" in done("push", "demo/prompts", "me/prompts", status=2)
    assert "usage: kdpl open" in done("open", "--help")  # it serves until it is stopped

    configs = Path(where[1])
    files = [
        "--config-file",
        configs / "trainers/KDPL_CoOp/emoji.yaml",
        "--dataset-config-file",
        configs / "datasets/emoji_sky.yaml",
    ]
    files = ["--trainer", "KDPL_CoOp", "--seed", "1", *map(str, files)]
    assert "of 1 views" in done("cache", *files, "TRAINER.KDPL.VIEWS", "1", "TRAINER.KDPL.CACHE_DIR", "views")
    done("train", *files, "--output-dir", "run", "DATASET.NUM_SHOTS", "1", *SHORT)
    assert "photo" in done("interpret", "run")
    keys = "protocol: few_shot\ntrainers: CoOp\ndatasets: emoji_sky\nseeds: 1\nshots: 1\nconfig: emoji\noutput: out\n"
    (tmp_path / "s.yaml").write_text(keys + "options: {OPTIM.MAX_EPOCH: 1, OPTIM.WARMUP_EPOCH: -1}\nexecutor: {gpus: 0}\n")
    assert "EmojiSky" in done("sweep", "s.yaml") and "1 finished" in done("sweep", "status", "s.yaml")
    flags = (*TINY, "--datasets", "emoji_sky", "--output", "out", "--", *SHORT)
    assert "Base-to-new" in done("sweep", "--protocol", "base2new", *flags)
    assert "Cross-dataset" in done("sweep", "--protocol", "xd", "--source", "emoji_office", *flags)
    assert "Base-to-new" in done("report", "out")
    assert used == set(COMMANDS)


def mypy(*words, cwd, cache):
    pytest.importorskip("mypy")
    command = [sys.executable, "-m", "mypy", "--cache-dir", os.environ.get("MYPY_CACHE_DIR", str(cache)), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, timeout=900).stdout


def test_mypy_accepts_what_the_docs_show_and_reports_wrong_uses(python, tmp_path):
    source = (ROOT / "tests/package/user.py").read_text(encoding="utf-8")
    (tmp_path / "user.py").write_text(source, encoding="utf-8")
    pages = "".join((ROOT / page).read_text(encoding="utf-8") for page in ("README.md", "docs/your_photos.md"))
    blocks = [
        block for block in re.findall(r"```python\n(.*?)```", pages, re.S) if "Distillation(" in block or "kdpl.load(" in block
    ]
    assert any("Distillation(" in block for block in blocks) and any("kdpl.load(" in block for block in blocks)
    for i, block in enumerate(blocks):  # torchvision has no types of its own
        text = re.sub(r"^(from torchvision.*)$", r"\1  # type: ignore[import-untyped]", block, flags=re.M)
        (tmp_path / f"page_{i}.py").write_text(text, encoding="utf-8")
    words = ["--strict", "--untyped-calls-exclude=torch", "--python-executable", str(python)]
    said = mypy(*words, *(p.name for p in tmp_path.glob("*.py")), cwd=tmp_path, cache=tmp_path / "cache")
    reported = {(file, int(line)) for file, line in re.findall(r"^(\S+?):(\d+): error", said, re.M)}
    expected = {("user.py", i) for i, line in enumerate(source.splitlines(), 1) if line.endswith("# refused")}
    assert len(expected) > 8 and reported == expected, said


def test_the_public_files_have_types_that_mypy_accepts(tmp_path):
    said = mypy(cwd=ROOT, cache=tmp_path)
    assert said.startswith("Success: no issues found in"), said
