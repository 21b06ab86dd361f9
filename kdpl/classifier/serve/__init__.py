"""A classifier of fixed class names without this package: an ONNX file, a folder with a client and a page, or a head's tensors.

The ONNX model takes pixels of its own size. The client resizes with Pillow, and the page as Pillow does, to the last bit.
"""

import dataclasses
import io
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL
import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn

from kdpl.bundle import inside_score
from kdpl.clip.model import check_finite
from kdpl.common.files import atomic_write
from kdpl.common.images import LONGEST
from kdpl.common.safe_text import REJECTED

if TYPE_CHECKING:
    from kdpl.classifier.classifier import Classifier

OPSET = 18
INPUT, OUTPUT, REJECTED_OUTPUT = "pixels", "probabilities", "rejected"
HALVED = 1024  # numbers that a tensor has at least to be stored in half precision
HERE, SHARED = Path(__file__).parent, Path(__file__).parent.parent / "gallery"
PAGE = {name: HERE / name for name in ("index.html", "page.css", "page.js", "resize.js")}
PAGE |= {name: SHARED / name for name in ("parts.css", "parts.js")}
RUNTIME = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")  # of onnxruntime-web
RUNTIME_VERSION = "1.30.0"


def in_fp32(classifier: "Classifier") -> "Classifier":
    """Return the same classifier, with the class names as they are, on the CPU and in fp32."""
    options = {**classifier.bundle.options, **({"PREC": "fp32"} if "PREC" in classifier.bundle.options else {})}
    bundle = dataclasses.replace(classifier.bundle, options=options)
    plain = type(classifier)(bundle, "cpu", classifier.clip.name)
    if classifier.classnames != plain.classnames:  # those of a training stay as they are, also if two are the same to CLIP
        plain.classnames = classifier.classnames
    return plain


def facts_of(classifier: "Classifier") -> dict[str, str]:
    """Return what one must know to use an exported file, as its metadata; `classnames` and `preprocessing` are JSON."""
    bundle = classifier.bundle
    return {
        "classnames": json.dumps(classifier.classnames, ensure_ascii=False),
        "preprocessing": json.dumps(dataclasses.asdict(bundle.preprocessing)),
        "clip": bundle.backbone,
        "clip_sha256": bundle.backbone_sha256,
        "learned by": "hand-written sentences" if bundle.decision.sentences else bundle.trainer,
        "kdpl": bundle.kdpl_version,
    }


def write_head(classifier: "Classifier", path: str | os.PathLike) -> Path:
    """Write the tensors behind the probabilities as a safetensors file, and return its path.

    With x, the normalised image features of the plain CLIP, the probabilities are the softmax of `logit_scale * x @
    text_features.T`, in fp32; of a kernel head (the file has `centres`), in fp64, that of `factor * (exp(gamma * (x @ centres.T
    - 1)) @ coefficients + mean + x @ linear.T)`. The metadata are those of `facts_of`.

    Args:
        classifier: with the class names asked for.

    Raises:
        ValueError: the text depends on the image, the image tower has prompts, or a value is NaN or infinite.
        OSError: the file could not be written.
    """
    encoder, plain = classifier.encoder, in_fp32(classifier)
    if not encoder.images_are_frozen or not (encoder.compares_texts or plain.student.closed_form):
        raise ValueError(
            f"{classifier.bundle.variant} has more than a head: what it learned is in the image tower or in layers over its "
            "features. Export the whole model (kdpl export OUT FOLDER), or train a learner such as CoOp or TaskRes."
        )
    classifier.refuse_conditional("has no matrix of its class names")
    if encoder.compares_texts:
        text = plain.text_features.float().contiguous()
        tensors = {"text_features": text, "logit_scale": plain.student.logit_scale.float().cpu() / plain.temperature}
    else:
        tensors = plain.student.head_of(plain.classnames)
    with atomic_write(path) as file:
        file.write(save({name: check_finite(value, name).clone() for name, value in tensors.items()}, facts_of(classifier)))
    return Path(path)


# ------------------------------------------------------------------------------------------------------------------- ONNX


class PixelsToProbabilities(nn.Module):
    """From RGB in 0..1, `(N, 3, R, R)`, to probabilities `(N, C)`: normalisation, image tower, class matrix or head, softmax.

    Args:
        classifier: on the CPU and in fp32.
        reject: give as a second output `(N)` whether an image is none of the classes.
    """

    def __init__(self, classifier: "Classifier", reject: bool = False):
        super().__init__()
        student, preprocessing = classifier.student, classifier.bundle.preprocessing
        # Frozen features are computed in inference mode, which cannot be traced.
        frozen = classifier.encoder.images_are_frozen
        self.encode = classifier.clip.image_features if frozen else student.image_features
        self.temperature = classifier.temperature
        self.register_buffer("mean", torch.tensor(preprocessing.mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(preprocessing.std).view(3, 1, 1))
        self.register_buffer("classes", student.logit_scale * classifier.text_features.T)  # (d, C)
        self.head = None if classifier.encoder.compares_texts else classifier.logits_of
        self.others, self.threshold = None, 0.0
        if reject:
            classifier.bundle.decision.check_reject(classifier.classnames)
            self.register_buffer("background", student.logit_scale * classifier.background_features.T)  # (d, K)
            self.others, self.threshold = self.background, float(classifier.bundle.decision.threshold)

    def forward(self, pixels: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        features = F.normalize(self.encode((pixels - self.mean) / self.std), dim=-1)  # (N, d)
        cosines = features @ self.classes  # (N, C)
        logits = cosines if self.head is None else self.head(features)
        probabilities = (logits / self.temperature).softmax(dim=-1)
        if self.others is None:
            return probabilities
        return probabilities, inside_score(cosines, features @ self.others) < self.threshold


def require_onnx() -> Any:
    """Return the package onnx.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import onnx
    except ImportError:
        raise ImportError("Exporting needs the package onnx: pip install 'kdpl[onnx]'.") from None
    return onnx


def write_onnx(classifier: "Classifier", path: str | os.PathLike, reject: bool = False, half: bool = False) -> Path:
    """Write a classifier as an ONNX file; see `Classifier.export_onnx`."""
    onnx = require_onnx()
    side = classifier.bundle.preprocessing.size[0]
    classifier.refuse_conditional("cannot be exported with a fixed list of class names")
    model = PixelsToProbabilities(in_fp32(classifier), reject).eval()
    outputs, example = [OUTPUT, *([REJECTED_OUTPUT] if reject else [])], torch.rand(2, 3, side, side)
    data = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        check_finite(model(example)[0], "probabilities of the exported model")
        warnings.simplefilter("ignore")  # the exporter's own: it is the one that needs no further package
        torch.onnx.export(
            model,
            (example,),
            data,
            input_names=[INPUT],
            output_names=outputs,
            dynamic_axes={name: {0: "N"} for name in (INPUT, *outputs)},
            opset_version=OPSET,
            dynamo=False,
        )
    graph = onnx.load_from_string(data.getvalue())
    if half:
        halve_weights(graph)
    onnx.helper.set_model_props(graph, facts_of(classifier))
    onnx.checker.check_model(graph)
    with atomic_write(path) as file:
        file.write(graph.SerializeToString())
    return Path(path)


def halve_weights(model: Any) -> None:
    """Store the large weights of an ONNX model in half precision, in place; they are cast to fp32 when the model is loaded.

    Raises:
        ValueError: a weight is larger than half precision holds.
    """
    from onnx import TensorProto, helper, numpy_helper

    weights, nodes, casts = list(model.graph.initializer), [], []
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":  # weights of the towers among them
            weights.append(node.attribute[0].t)
            weights[-1].name = node.output[0]
        else:
            nodes.append(node)
    for weight in weights:
        if weight.data_type != TensorProto.FLOAT or np.prod(weight.dims) < HALVED:
            continue
        values, name = numpy_helper.to_array(weight), weight.name
        if (largest := np.abs(values).max()) > np.finfo(np.float16).max:
            raise ValueError(
                f"'{name}' of the model has values up to {largest:.4g}, and half precision ends at 65,504: export it without "
                "--half."
            )
        weight.CopyFrom(numpy_helper.from_array(values.astype(np.float16), f"{name}_half"))
        casts.append(helper.make_node("Cast", [f"{name}_half"], [name], to=TensorProto.FLOAT))
    graph = helper.make_graph([*casts, *nodes], model.graph.name, model.graph.input, model.graph.output, weights)
    model.graph.CopyFrom(graph)


# ----------------------------------------------------------------------------------------------------------------- a folder


def write_folder(
    classifier: "Classifier", folder: Path, reject: bool, half: bool, runtime: Mapping[str, bytes] | None = None
) -> Path:
    """Write model, names and client, and with the runtime the page, into an existing folder; return the path of the model.

    Args:
        runtime: what `read_runtime` returns; without it an earlier page is removed.

    Raises:
        ValueError, ImportError, OSError: as `Classifier.export_onnx`.
    """
    preprocessing = classifier.bundle.preprocessing
    if runtime and preprocessing.interpolation == "nearest":
        raise ValueError("The page resizes by 'bicubic' or 'bilinear', and this CLIP by 'nearest': export with --no-page.")
    model = write_onnx(classifier, folder / "model.onnx", reject, half)
    facts = {
        "names": classifier.classnames,
        "rejected": REJECTED,
        "side": preprocessing.size[0],
        "interpolation": preprocessing.interpolation,
        "squash": preprocessing.resize_mode == "squash",
        "longest": LONGEST,
        "least": classifier.decoder.least,
        "pillow": int(PIL.__version__.partition(".")[0]),  # on which the order of resizing depends
    }
    contents = {"names.json": json.dumps(facts, ensure_ascii=False).encode(), "client.py": (HERE / "client.py").read_bytes()}
    if runtime:
        contents |= {name: path.read_bytes() for name, path in PAGE.items()} | runtime
    for name, content in contents.items():
        with atomic_write(folder / name) as file:
            file.write(content)
    for name in () if runtime else (*PAGE, *RUNTIME):
        (folder / name).unlink(missing_ok=True)
    return model


def read_runtime(package: str = "") -> dict[str, bytes]:
    """Return the files of onnxruntime-web that the page needs, by their names.

    Args:
        package: the npm package as a .tgz file; empty: fetch it with npm.

    Raises:
        OSError: there is no npm, the package cannot be fetched, or a file is missing; the message has what to do.
    """
    what_to_do = (
        f"Get the package another way (npm pack onnxruntime-web@{RUNTIME_VERSION}) and name it with --runtime, or leave the "
        "page out with --no-page."
    )
    with tempfile.TemporaryDirectory() as temporary:
        if not package:
            if not (npm := shutil.which("npm")):
                raise OSError(f"The page needs onnxruntime-web, and there is no npm here to fetch it. {what_to_do}")
            command = [npm, "pack", f"onnxruntime-web@{RUNTIME_VERSION}", "--silent"]
            done = subprocess.run(command, cwd=temporary, capture_output=True, text=True, check=False)
            packages = list(Path(temporary).glob("*.tgz"))
            if done.returncode or not packages:
                raise OSError(
                    f"npm cannot fetch onnxruntime-web ({done.stderr.strip()[:200] or done.returncode}). {what_to_do}"
                )
            package = str(packages[0])
        try:
            with tarfile.open(package) as archive:
                return {name: archive.extractfile(f"package/dist/{name}").read() for name in RUNTIME}
        except (OSError, tarfile.TarError, KeyError) as error:
            raise OSError(f"'{package}' is not the npm package onnxruntime-web ({error}). {what_to_do}") from error
