"""A classifier as a folder that serves itself: the model, its names, a page for a browser, and a client in Python."""

import json
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from kdpl.classifier.serve.onnx_file import export_with_preprocessing, require_onnx
from kdpl.common.class_names import REJECTED
from kdpl.common.files import atomic_write
from kdpl.common.images import open_image

if TYPE_CHECKING:
    from kdpl.classifier.classifier import Classifier

HERE, SHARED = Path(__file__).parent, Path(__file__).parent.parent / "gallery"
PAGE = {name: HERE / name for name in ("serve.py", "index.html", "page.css", "page.js")}
PAGE |= {name: SHARED / name for name in ("parts.css", "parts.js")}
RUNTIME = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")  # of onnxruntime-web
RUNTIME_VERSION = "1.30.0"


class Agreement(NamedTuple):
    """How an exported model agrees with the classifier it was made from."""

    photos: int
    same: int  # photos with the same likeliest name
    difference: float  # the largest of a probability


def write_folder(
    classifier: "Classifier", folder: Path, reject: bool, half: bool, runtime: Mapping[str, bytes] | None = None
) -> Path:
    """Write model, names and client, and with the runtime the page, into an existing folder; return the path of the model.

    Args:
        classifier: with the class names asked for.
        reject: let the model say that an image is none of the classes.
        half: store the weights in half precision.
        runtime: what `read_runtime` returns; without it an earlier page is removed.

    Raises:
        ValueError, ImportError, OSError: as `export_with_preprocessing`.
    """
    require_onnx()
    path = export_with_preprocessing(classifier, folder / "model.onnx", reject, half)
    with atomic_write(folder / "names.json", "w") as file:
        facts = {"names": classifier.classnames, "rejected": REJECTED, "least": classifier.decoder.least}
        json.dump(facts, file, ensure_ascii=False)
    sources = {"client.py": HERE / "client.py", **(PAGE if runtime else {})}
    parts = {name: path.read_bytes() for name, path in sources.items()}
    for name, content in {**parts, **(runtime or {})}.items():
        with atomic_write(folder / name) as file:
            file.write(content)
    for name in () if runtime else (*PAGE, *RUNTIME):
        (folder / name).unlink(missing_ok=True)
    return path


def read_runtime(source: str = "") -> dict[str, bytes]:
    """Return the files of onnxruntime-web that the page needs, by their names.

    Args:
        source: a folder with these files, or the npm package as a .tgz file; empty: fetch the package with npm.

    Raises:
        OSError: there is no npm, the package cannot be fetched, or a file is missing; the message has what to do.
    """
    way = (
        f"Get the package another way (npm pack onnxruntime-web@{RUNTIME_VERSION}) and name it with --runtime, or leave the "
        "page out with --no-page."
    )
    with tempfile.TemporaryDirectory() as temporary:
        if not source:
            if not (npm := shutil.which("npm")):
                raise OSError(f"The page needs onnxruntime-web, and there is no npm here to fetch it. {way}")
            command = [npm, "pack", f"onnxruntime-web@{RUNTIME_VERSION}", "--silent"]
            done = subprocess.run(command, cwd=temporary, capture_output=True, text=True, check=False)
            packages = list(Path(temporary).glob("*.tgz"))
            if done.returncode or not packages:
                raise OSError(f"npm cannot fetch onnxruntime-web ({done.stderr.strip()[:200] or done.returncode}). {way}")
            source = str(packages[0])
        found = Path(source)
        if found.is_dir():
            parts = {name: next((p for p in (found / name, found / "dist" / name) if p.is_file()), None) for name in RUNTIME}
            contents = {name: path.read_bytes() for name, path in parts.items() if path}
        elif found.is_file() and tarfile.is_tarfile(found):
            with tarfile.open(found) as archive:
                members = {name: f"package/dist/{name}" for name in RUNTIME}
                inside = set(archive.getnames())
                contents = {n: archive.extractfile(m).read() for n, m in members.items() if m in inside}
        else:
            raise OSError(f"'{source}' is neither a folder nor an npm package. {way}")
        if missing := [name for name in RUNTIME if name not in contents]:
            raise OSError(f"'{source}' lacks {', '.join(missing)}. {way}")
    return contents


def agreement(classifier: "Classifier", model: Path, photos: Sequence[str]) -> Agreement | None:
    """Compare an exported model with its classifier on photos; None where onnxruntime is not installed."""
    try:
        import onnxruntime
    except ImportError:
        return None
    session, same, difference, count = onnxruntime.InferenceSession(model), 0, 0.0, 0
    for answer in classifier.stream(photos, 16, on_bad=lambda *_: None):
        for path, expected in zip(answer.images, answer.probabilities.numpy(), strict=True):
            found = session.run(["probabilities"], {"image": np.asarray(open_image(path))})[0][0]
            same += int(found.argmax() == expected.argmax())
            difference = max(difference, float(np.abs(found - expected).max()))
            count += 1
    return Agreement(count, same, difference)
