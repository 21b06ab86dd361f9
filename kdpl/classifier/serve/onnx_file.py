"""A classifier of fixed class names as an ONNX file, which runs without PyTorch and without this package."""

import dataclasses
import io
import json
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdpl.bundle import inside_score
from kdpl.clip.model import check_finite
from kdpl.common.files import atomic_write

if TYPE_CHECKING:
    from kdpl.classifier.classifier import Classifier

OPSET = 18  # the first whose Resize has the antialiasing that Pillow has
INPUT, OUTPUT, REJECTED_OUTPUT = "pixels", "probabilities", "rejected"
IMAGE = "image"  # the input of a file that prepares its images itself


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


def export_with_preprocessing(
    classifier: "Classifier", path: str | os.PathLike, reject: bool = False, half: bool = False
) -> Path:
    """Write a classifier as an ONNX file that takes an image of any size.

    Its input `image` (H, W, 3) is uint8 RGB, upright and without transparency. It is cut, resized and cropped as in KDPL. Its
    output `probabilities` is (1, C); with `reject` there is another, `rejected` (1), bool.

    Args:
        classifier: with the class names asked for.
        half: store the weights in half precision; the file is half as large, and it still computes in fp32.

    Raises:
        ValueError: images must be rejected, and the bundle has no threshold; every image has text features of its own; or a
            weight is NaN or infinite, in half precision if that is asked for.
        ImportError: the package onnx is not installed.
        OSError: the file could not be written.
    """
    from kdpl.classifier.serve.preprocessing import with_preprocessing

    model = with_preprocessing(traced(classifier, reject), classifier.bundle.preprocessing, IMAGE, INPUT)
    if half:
        from kdpl.classifier.serve.preprocessing import halve_weights

        halve_weights(model)
    return write_model(model, classifier, path)


def traced(classifier: "Classifier", reject: bool) -> Any:
    """Return the ONNX model from pixels to probabilities."""
    onnx = require_onnx()
    side = classifier.bundle.preprocessing.size[0]
    classifier.refuse_conditional("cannot be exported with a fixed list of class names")
    model = PixelsToProbabilities(in_fp32(classifier), reject).eval()
    outputs = [OUTPUT, *([REJECTED_OUTPUT] if reject else [])]
    data = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter's own: it is the one that needs no further package
        torch.onnx.export(
            model,
            (torch.rand(2, 3, side, side),),
            data,
            input_names=[INPUT],
            output_names=outputs,
            dynamic_axes={name: {0: "N"} for name in (INPUT, *outputs)},
            opset_version=OPSET,
            dynamo=False,
        )
    return onnx.load_from_string(data.getvalue())


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


def in_fp32(classifier: "Classifier") -> "Classifier":
    """Return the same classifier, with the class names as they are, on the CPU and in fp32."""
    options = {**classifier.bundle.options, **({"PREC": "fp32"} if "PREC" in classifier.bundle.options else {})}
    bundle = dataclasses.replace(classifier.bundle, options=options)
    plain = type(classifier)(bundle, "cpu", classifier.clip.name)
    if classifier.classnames != plain.classnames:  # those of a training stay as they are, also if two are the same to CLIP
        plain.classnames = classifier.classnames
    return plain


def constants_of(model: Any) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the weights and constants of an ONNX model, with their names."""
    from onnx import numpy_helper

    yield from ((weight.name, numpy_helper.to_array(weight)) for weight in model.graph.initializer)
    for node in model.graph.node:
        yield from (
            (node.output[0], numpy_helper.to_array(a.t)) for a in node.attribute if a.name == "value" and a.HasField("t")
        )


def write_model(model: Any, classifier: "Classifier", path: str | os.PathLike) -> Path:
    """Write an ONNX model with what one must know to use it in its metadata.

    Raises:
        NotFiniteError: a weight holds NaN or infinite values.
        OSError: the file could not be written.
    """
    import onnx

    for name, values in constants_of(model):
        if np.issubdtype(values.dtype, np.floating):
            check_finite(torch.from_numpy(values.copy()), f"values of '{name}'")
    bundle = classifier.bundle
    facts = {
        "classnames": json.dumps(classifier.classnames),
        "template": bundle.template,
        "preprocessing": json.dumps(dataclasses.asdict(bundle.preprocessing)),
        "temperature": str(classifier.temperature),
        "backbone": bundle.backbone,
        "trainer": bundle.trainer,
        "kdpl": bundle.kdpl_version,
    }
    onnx.helper.set_model_props(model, facts)
    onnx.checker.check_model(model)
    with atomic_write(path) as file:
        file.write(model.SerializeToString())
    return Path(path)
