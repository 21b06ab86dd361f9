"""A classifier of fixed class names as the few tensors that it is, for any program that has the CLIP's image features."""

import dataclasses
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import save

from kdpl.classifier.serve.onnx_file import in_fp32
from kdpl.clip.model import check_finite
from kdpl.common.files import atomic_write

if TYPE_CHECKING:
    from kdpl.classifier.classifier import Classifier

FORMAT = "kdpl head 1"


def write_head(classifier: "Classifier", path: str | os.PathLike) -> Path:
    """Write the tensors behind the probabilities as a safetensors file, and return its path.

    With x, the normalised image features of the plain CLIP, the probabilities are the softmax of `logit_scale * x @
    text_features.T`, in fp32; of a kernel head (the file has `centres`), in fp64, that of `factor * (exp(gamma * (x @ centres.T
    - 1)) @ coefficients + mean + x @ linear.T)`. The metadata are text: `classnames`, `preprocessing` (JSON), `clip`,
    and `clip_sha256`.

    Args:
        classifier: with the class names asked for.

    Raises:
        ValueError: the text depends on the image, the image tower has prompts, or a value is NaN or infinite.
        OSError: the file could not be written.
    """
    bundle = classifier.bundle
    classifier.refuse_conditional("has no matrix of its class names")
    if not classifier.encoder.images_are_frozen:
        raise ValueError(
            f"{bundle.variant} has learned prompts in the image tower, so that its image features are not those of the plain "
            "CLIP, and a matrix alone would give wrong probabilities. Export the whole model (kdpl export OUT FOLDER), or "
            "train a learner that leaves the image tower as it is, such as CoOp or TaskRes."
        )
    plain = in_fp32(classifier)
    if classifier.encoder.compares_texts:
        text = plain.text_features.float().contiguous()
        tensors = {"text_features": text, "logit_scale": plain.student.logit_scale.float().cpu() / plain.temperature}
    elif plain.student.closed_form:
        tensors = plain.student.head_of(plain.classnames)
    else:
        raise ValueError(
            f"{bundle.variant} learns layers over the image features, which no matrix is: export the whole model (kdpl export "
            "OUT FOLDER), or train a learner such as CoOp or TaskRes."
        )
    facts = {
        "format": FORMAT,
        "classnames": json.dumps(classifier.classnames, ensure_ascii=False),
        "preprocessing": json.dumps(dataclasses.asdict(bundle.preprocessing)),
        "clip": bundle.backbone,
        "clip_sha256": bundle.backbone_sha256,
        "learned by": "hand-written sentences" if bundle.decision.sentences else bundle.trainer,
        "kdpl": bundle.kdpl_version,
    }
    with atomic_write(path) as file:
        file.write(save({name: check_finite(value, name).clone() for name, value in tensors.items()}, facts))
    return Path(path)
