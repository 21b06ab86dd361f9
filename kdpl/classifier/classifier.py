"""Learned prompts as a classifier of images: `kdpl.load(folder)`."""

import dataclasses
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kdpl.classifier.bundle import Bundle, BundleError, backbone_digest, read_bundle
from kdpl.classifier.decoding import BATCH_SIZE, WORKERS, Decoder, OnBad
from kdpl.clip.loading import describe, load_clip
from kdpl.clip.model import similarity_logits
from kdpl.clip.names import ModelNameError
from kdpl.clip.precision import effective_precision
from kdpl.config.defaults import KDPL
from kdpl.config.merging import learner_options
from kdpl.text.templates import DEFAULT
from kdpl.training.checkpoint import CheckpointError, load_learned
from kdpl.training.pixels import Normalize

ImageLike: TypeAlias = str | os.PathLike | Image.Image | np.ndarray | Tensor


def load(path: str | os.PathLike, device: str | torch.device | None = None, backbone: str | None = None) -> "Classifier":
    """Return the classifier that a training has written.

    Args:
        path: the output folder of the training, or the file `prompts.safetensors`.
        device: "cpu", "cuda", ...; None: a GPU where there is one.
        backbone: where the CLIP is found that the prompts were learned for, if its name or path is another here: anything
            that MODEL.BACKBONE.NAME takes. Its weights must be the same.

    Raises:
        BundleError: the file is missing, damaged, or does not fit the CLIP.
        ModelNameError, WeightsError: see `kdpl.clip.load_clip`.
    """
    return Classifier(read_bundle(path), device, backbone)


class Classifier:
    """A CLIP with learned prompts, from images to probabilities over class names.

    An image is a path, a PIL image, a NumPy array (H, W), (H, W, 3) or (H, W, 4), or a tensor (3, H, W); arrays and tensors
    are uint8, uint16, or floats in 0..1. Any orientation and colour mode is understood (`kdpl.common.images`).

    Attributes:
        bundle: what was loaded.
        device: where it computes.
        student: the prompt learner.
        seconds: time spent since the start, by what: "decoding" (reading and resizing, summed over the workers),
            "waiting" (for images that were not decoded yet) and "model" (image tower and logits).

    Args:
        bundle: from `read_bundle`.
        device, backbone: see `load`.

    Raises:
        BundleError: the prompts do not fit the CLIP.
    """

    def __init__(self, bundle: Bundle, device: str | torch.device | None = None, backbone: str | None = None):
        self.bundle = bundle
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        name, student_class = backbone or bundle.backbone, bundle.student_class
        try:
            architecture = describe(name)
        except ModelNameError as error:
            raise ModelNameError(f"{error} The prompts belong to this CLIP: give where it is as `backbone`.") from None
        size, side = bundle.preprocessing.size, architecture.resolution
        try:
            if size != (side, side):
                raise ValueError(f"the prompts take images of {size}, '{name}' of {(side, side)}")
            options = learner_options(student_class.node, bundle.options)
            student_class.check(options, architecture, name)
        except ValueError as error:
            raise self._misfit(name, error) from error
        precision = options.get("PREC", "fp32")
        learned = effective_precision(precision, self.device.type)
        # as the training's evaluation had it
        frozen = effective_precision(precision, self.device.type, student_class.reads_frozen_image_features)
        self.clip = load_clip(name, learned, self.device, frozen)
        if backbone_digest(self.clip) != bundle.backbone_sha256:
            raise BundleError(
                f"The weights of '{name}' are not those that the prompts were learned for ('{bundle.backbone}', SHA-256 "
                f"{bundle.backbone_sha256[:12]}...). Give the file with the same weights as `backbone` (--backbone)."
            )
        self.clip.bound_text(KDPL["MAX_TEXT_ROWS"])
        self.student = student_class(self.clip, options, bundle.classnames, bundle.template or DEFAULT)
        try:
            load_learned(self.student.learned.float(), bundle.parameters, "the bundle")
        except CheckpointError as error:
            raise self._misfit(name, error) from error
        self.student.requires_grad_(False).eval().to(self.device)
        self._decoder = Decoder(bundle.preprocessing)
        self._normalize = Normalize(bundle.preprocessing.mean, bundle.preprocessing.std)
        self._classnames, self._prepared, self._text = list(bundle.classnames), None, None

    def _misfit(self, name: str, error: Exception) -> BundleError:
        return BundleError(f"The prompts of {self.bundle.trainer} for '{self.bundle.backbone}' do not fit '{name}': {error}")

    @property
    def seconds(self) -> dict[str, float]:
        """Time spent since the start, see `Decoder.seconds`."""
        return self._decoder.seconds

    # ---------------------------------------------------------------------------------------------------------- class names

    @property
    def classnames(self) -> list[str]:
        """The class names, in the order of the probabilities; others may be set unless the prompts are class-specific.

        Raises:
            ValueError: on setting, no name, an empty or double one, or class-specific prompts have none for the list.
        """
        return list(self._classnames)

    @classnames.setter
    def classnames(self, names: Sequence[str]) -> None:
        if isinstance(names, str) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"classnames is {names!r}, expected a list of names.")
        names = list(names)
        if not names or not all(name.replace("_", " ").strip() for name in names):
            raise ValueError(f"classnames is {names!r}, expected at least one name, and none of them empty.")
        if double := [name for i, name in enumerate(names) if name in names[:i]] if len(set(names)) < len(names) else []:
            raise ValueError(f"classnames has '{double[0]}' twice: the two would share its probability.")
        if self.student.class_specific and names != self.bundle.classnames:
            raise ValueError(
                f"The prompts are class-specific (TRAINER.{self.student.node}.CSC True): they were learned for "
                f"{', '.join(self.bundle.classnames[:5])}, ... ({len(self.bundle.classnames)} names) in this order, and there "
                "are none for other names. Train with CSC False."
            )
        self._classnames, self._prepared, self._text = names, None, None

    @property
    def text_features(self) -> Tensor:
        """The normalised text features (C, d) of the class names, on the CPU.

        Raises:
            ValueError: the variant has other text features for each image (CoCoOp).
        """
        self._refuse_conditional("has no text features of the class names alone")
        return self._class_features().cpu().clone()

    def _refuse_conditional(self, what: str) -> None:
        if self.student.text_depends_on_images:
            raise ValueError(
                f"{self.bundle.variant} {what}: a small net shifts its context by each image's feature, so that every image "
                "has text features of its own. Use the probabilities, or another variant, such as CoOp."
            )

    def _class_prompts(self) -> Any:
        if not self._classnames:
            raise ValueError("The prompts were learned without class names: set `classnames` (--classnames) to yours first.")
        if self._prepared is None:
            self._prepared = self.student.prepare(self._classnames)
        return self._prepared

    @torch.no_grad()
    def _class_features(self) -> Tensor | None:
        """Return the text features (C, d), computed when they are first needed; None where each image has its own."""
        if self._text is None and not self.student.text_depends_on_images:
            with self.clip.autocast():
                self._text = self.student.text_features(self._class_prompts())
        return self._text

    # --------------------------------------------------------------------------------------------------------------- images

    def __call__(self, images: ImageLike | Iterable[ImageLike], batch_size: int = BATCH_SIZE) -> Tensor:
        """Return the probabilities (N, C), on the CPU, of one image or several.

        Raises:
            BadImageError: an image cannot be read.
        """
        batches = list(self.predict(images, batch_size))
        return torch.cat(batches) if batches else torch.empty(0, len(self._classnames))

    def predict(
        self, images: ImageLike | Iterable[ImageLike], batch_size: int = BATCH_SIZE, workers: int = WORKERS
    ) -> Iterator[Tensor]:
        """Give the probabilities (B, C) batch by batch; of the images no more than two batches are held at a time.

        Raises:
            BadImageError: an image cannot be read.
        """
        for _, probabilities in self.stream(images, batch_size, workers):
            yield probabilities

    def stream(
        self,
        images: ImageLike | Iterable[ImageLike],
        batch_size: int = BATCH_SIZE,
        workers: int = WORKERS,
        on_bad: OnBad | None = None,
    ) -> Iterator[tuple[list[Any], Tensor]]:
        """Give, batch by batch, the images as they were given, paths say, and their probabilities (B, C) on the CPU.

        Args:
            images: any number of them; they are taken when their turn comes.
            batch_size: B.
            workers: threads that read images ahead of the model; 0: none.
            on_bad: called with an image that cannot be read and the error, and the image is left out; None: it is raised.

        Raises:
            BadImageError: an image cannot be read, and there is no `on_bad`.
        """
        for batch, pixels in self._decoder.batches(images, batch_size, workers, on_bad):
            yield batch, self._logits(pixels).softmax(dim=-1)

    def logits(self, images: ImageLike | Iterable[ImageLike], batch_size: int = BATCH_SIZE) -> Tensor:
        """Return the logits (N, C) in fp32, on the CPU, of which the probabilities are the softmax."""
        rows = [self._logits(pixels) for _, pixels in self._decoder.batches(images, batch_size)]
        return torch.cat(rows) if rows else torch.empty(0, len(self._classnames))

    def image_features(self, images: ImageLike | Iterable[ImageLike], batch_size: int = BATCH_SIZE) -> Tensor:
        """Return the normalised image features (N, d), on the CPU."""
        rows = [self._image_features(pixels).cpu() for _, pixels in self._decoder.batches(images, batch_size)]
        return torch.cat(rows) if rows else torch.empty(0, self.clip.embed_dim)

    @torch.no_grad()
    def _logits(self, pixels: Tensor) -> Tensor:
        """Return the logits (B, C) of images (B, 3, H, W) as bytes, just as the training's evaluation does, on the CPU."""
        text = self._class_features()
        with self._decoder.timed("model"):
            features = self._image_features(pixels)
            with self.clip.autocast():
                if text is None:
                    text = self.student.text_features(self._class_prompts(), features)
                return similarity_logits(self.student.logit_scale, features, text).cpu()  # which waits for the device

    @torch.no_grad()
    def _image_features(self, pixels: Tensor) -> Tensor:
        images = self._normalize(pixels.to(self.device))
        frozen = self.student.image_features_are_frozen
        with self.clip.autocast(frozen):
            return self.student.image_features(images)

    def export_onnx(self, path: str | os.PathLike) -> Path:
        """Write an ONNX file for the class names as they are, in fp32, and return its path.

        Its input `pixels` (N, 3, R, R) is RGB in 0..1, resized and cut out as the metadata's `preprocessing` says; it
        normalises them itself. Its output `probabilities` (N, C) is in the order of the metadata's `classnames`, a JSON list.

        Raises:
            ValueError: the variant has other text features for each image (CoCoOp).
            ImportError: the package onnx is not installed.
            OSError: the file could not be written.
        """
        self._refuse_conditional("cannot be exported with a fixed list of class names")
        from kdpl.classifier.export import export

        options = {**self.bundle.options, **({"PREC": "fp32"} if "PREC" in self.bundle.options else {})}
        plain = Classifier(dataclasses.replace(self.bundle, options=options), "cpu", self.clip.name)
        plain._classnames = self._classnames
        return export(plain, path)
