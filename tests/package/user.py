"""What the docs show as public, used by someone who runs `mypy --strict`: tests/test_package.py checks it, nothing runs it.

The lines with `# refused` must be reported, all others accepted.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import kdpl
from kdpl.bundle import Bundle, BundleError, read_bundle
from kdpl.clip import Architecture, Clip, ModelNameError, WeightsError, describe, load_clip, outline_clip, similarity_logits
from kdpl.distill import CrossEntropy, Distillation, Teacher, distillation_loss
from kdpl.students import IVLP, LEARNERS, VPT, CoCoOp, CoOp, KgCoOp, MaPLe, Output, PromptSRC, Student
from kdpl.trainers import distilled


def predict(folder: Path) -> list[str]:
    clf: kdpl.Classifier = kdpl.load(folder, device="cpu", backbone=None)
    clf = kdpl.load("hf-hub:owner/name@v1")
    clf.classnames = ["giraffe", "lion"]
    names: list[str] = clf.classnames
    probabilities: Tensor = clf(["one.jpg", Path("two.png")])
    probabilities = clf(np.zeros((8, 8, 3), np.uint8), batch_size=4)
    probabilities = clf(Image.new("RGB", (8, 8)))
    for images, some, _ in clf.stream(folder.iterdir(), workers=0):
        print(images, some.shape)
    for answer in clf.stream([torch.zeros(3, 8, 8)], reject=True):
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
    except (ModelNameError, WeightsError) as error:
        raise SystemExit(str(error)) from error
    teacher = Teacher(clip, names, "a photo of a {}.", clip.mean, clip.std, logit_scale="own")
    options: dict[str, Any] = {"CTX_INIT": "a photo of a"}
    student: Student = CoOp(clip, options)
    students: list[Student] = [learner(clip, options, names, "a photo of a {}.") for learner in LEARNERS]
    students += [CoCoOp(clip), VPT(clip), MaPLe(clip), PromptSRC(clip), IVLP(clip), KgCoOp(clip)]
    objective = Distillation(student, clip, names)
    labelled = CrossEntropy(student, names)
    for batch in images:
        loss, terms = objective(batch)
        loss.backward()
        value: Tensor = terms["kd"]
        output: Output = student(batch, student.prepare(names))
        print(value, output.logits.shape, labelled(batch, torch.zeros(2, dtype=torch.long))[0])
    logits = similarity_logits(clip.logit_scale, clip.image_features(torch.zeros(1, 3, 224, 224)), teacher.text_features)
    print(distillation_loss(logits, logits), architecture.resolution, outline_clip("ViT-B/32").embed_dim)
    return student


def bundle(folder: str) -> Bundle:
    try:
        return read_bundle(folder)
    except BundleError as error:
        raise SystemExit(str(error)) from error


class Trainer:
    """Of a fork."""


@distilled(name="KDPL_Other", teacher_view=1)
class Other:
    """The same as a decorator."""


made: type = distilled(Trainer)
kdpl.extend_cfg(object())

kdpl.load(["OUT"])  # refused
kdpl.load("OUT", device=1.5)  # refused
kdpl.load("OUT").classnames = [1, 2]  # refused
kdpl.load("OUT")(3)  # refused
print(kdpl.load("OUT").clasnames)  # refused
load_clip(["ViT-B/32"])  # refused
CoOp("ViT-B/32", {})  # refused
Distillation(CoOp(load_clip("RN50"), {}), "RN50", ["cat"])  # refused
Teacher(load_clip("RN50"), [1], "a {}", (0.0,), (1.0,))  # refused
distilled("TCP")  # refused
extended: int = kdpl.extend_cfg(object())  # refused
