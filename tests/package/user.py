"""What the docs show as public, used by someone who runs `mypy --strict`: tests/test_package.py checks it, nothing runs it.

The lines with `# refused` must be reported, all others accepted.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import kdpl
from kdpl.bundle import Bundle, BundleError, read_bundle
from kdpl.clip import Architecture, Clip, ModelNameError, WeightsError, describe, load_clip, outline_clip, similarity_logits
from kdpl.distill import CrossEntropy, Distillation, Teacher, distillation_loss
from kdpl.students import LEARNERS, CoOp, Output, Student
from kdpl.trainers import distilled


def predict(folder: Path) -> list[str]:
    clf: kdpl.Classifier = kdpl.load(folder, device="cpu", backbone=None)
    clf.classnames = ["giraffe", "lion"]
    names: list[str] = clf.classnames
    probabilities: Tensor = clf(["one.jpg", Path("two.png"), Image.new("RGB", (8, 8)), np.zeros((8, 8, 3), np.uint8)])
    for answer in clf.stream(folder.iterdir(), workers=0, reject=True):
        rejected: Tensor = answer.rejected
        print(answer.images, answer.probabilities, rejected)
    features: Tensor = torch.cat([clf.text_features, clf.image_features("one.jpg"), clf.logits("one.jpg")])
    onnx: Path = clf.export_onnx("model.onnx")
    print(features, onnx, clf.bundle.trainer, kdpl.__version__, kdpl.dassl_in_use())
    return [names[i] for i in probabilities.argmax(dim=1)]


def learn(images: Iterable[Tensor], names: list[str]) -> Student:
    try:
        clip: Clip = load_clip("ViT-B/32", precision="fp32", device=torch.device("cpu"))
        architecture: Architecture = describe("ViT-B/32")
        bundle: Bundle = read_bundle("OUT")
    except (ModelNameError, WeightsError, BundleError) as error:
        raise SystemExit(str(error)) from error
    teacher = Teacher(clip, names, "a photo of a {}.", clip.mean, clip.std, logit_scale="own")
    students: list[Student] = [learner(clip, dict(bundle.options), names, "a photo of a {}.") for learner in LEARNERS]
    student: Student = CoOp(clip, {"CTX_INIT": "a photo of a"})
    objective = Distillation(student, clip, names)
    for batch in images:
        loss, terms = objective(batch)
        loss.backward()
        output: Output = student(batch, student.prepare(names))
        print(terms["kd"], output.logits.shape, CrossEntropy(student, names)(batch, torch.zeros(2, dtype=torch.long))[0])
    logits = similarity_logits(clip.logit_scale, clip.image_features(torch.zeros(1, 3, 224, 224)), teacher.text_features)
    print(distillation_loss(logits, logits), architecture.resolution, outline_clip("ViT-B/32").embed_dim, students)
    return student


class Trainer:
    """Of a fork."""


made: type = distilled(Trainer)
kdpl.extend_cfg(object())

kdpl.load(["OUT"])  # refused
kdpl.load("OUT", device=1.5)  # refused
kdpl.load("OUT").classnames = [1, 2]  # refused
kdpl.load("OUT")(3)  # refused
print(kdpl.load("OUT").clasnames)  # refused
load_clip(["ViT-B/32"])  # refused
CoOp("ViT-B/32", {})  # refused
Teacher(load_clip("RN50"), [1], "a {}", (0.0,), (1.0,))  # refused
distilled("TCP")  # refused
extended: int = kdpl.extend_cfg(object())  # refused
