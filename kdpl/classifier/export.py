"""A classifier of fixed class names as an ONNX file, which runs without PyTorch and without this package."""

import dataclasses
import io
import json
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdpl.common.files import atomic_write

if TYPE_CHECKING:
    from kdpl.classifier.classifier import Classifier

OPSET = 17
INPUT, OUTPUT = "pixels", "probabilities"


class PixelsToProbabilities(nn.Module):
    """From RGB in 0..1, `(N, 3, R, R)`, to probabilities `(N, C)`: normalisation, image tower, class matrix, softmax."""

    def __init__(self, classifier: "Classifier"):
        super().__init__()
        student, preprocessing = classifier.student, classifier.bundle.preprocessing
        # Frozen features are computed in inference mode, which cannot be traced.
        self.encode = classifier.clip.image_features if student.image_features_are_frozen else student.image_features
        self.register_buffer("mean", torch.tensor(preprocessing.mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(preprocessing.std).view(3, 1, 1))
        self.register_buffer("classes", student.logit_scale * classifier.text_features.T)  # (d, C)

    def forward(self, pixels: Tensor) -> Tensor:
        features = F.normalize(self.encode((pixels - self.mean) / self.std), dim=-1)  # (N, d)
        return (features @ self.classes).softmax(dim=-1)


def export(classifier: "Classifier", path: str | os.PathLike) -> Path:
    """Write a classifier, on the CPU and in fp32, as an ONNX file; see `Classifier.export_onnx`."""
    try:
        import onnx
    except ImportError:
        raise ImportError("Exporting needs the package onnx: pip install 'kdpl[onnx]'.") from None
    bundle = classifier.bundle
    side = bundle.preprocessing.size[0]
    model = PixelsToProbabilities(classifier).eval()
    data = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter's own: it is the one that needs no further package
        torch.onnx.export(
            model,
            (torch.rand(2, 3, side, side),),
            data,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_axes={INPUT: {0: "N"}, OUTPUT: {0: "N"}},
            opset_version=OPSET,
            dynamo=False,
        )
    exported = onnx.load_from_string(data.getvalue())
    facts = {
        "classnames": json.dumps(classifier.classnames),
        "template": bundle.template,
        "preprocessing": json.dumps(dataclasses.asdict(bundle.preprocessing)),
        "backbone": bundle.backbone,
        "trainer": bundle.trainer,
        "kdpl": bundle.kdpl_version,
    }
    onnx.helper.set_model_props(exported, facts)
    onnx.checker.check_model(exported)
    with atomic_write(path) as file:
        file.write(exported.SerializeToString())
    return Path(path)
