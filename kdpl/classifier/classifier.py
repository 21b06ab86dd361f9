"""Learned prompts as a classifier of images: `kdpl.load(folder)`."""

import dataclasses
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import PIL
import torch
from PIL import Image
from torch import Tensor

from kdpl.bundle import Bundle, inside_score
from kdpl.bundle.hub import read
from kdpl.bundle.learned import NameEncoder, NameTexts, fitting_options, learned_student, refuse_doubles
from kdpl.classifier.decoding import BATCH_SIZE, WORKERS, Decoded, Decoder, OnBad, stacked_pixels
from kdpl.clip.loading import describe, load_clip
from kdpl.clip.model import Normalize, check_finite, effective_precision, similarity_logits
from kdpl.clip.names import ModelNameError
from kdpl.common.files import cache_dir
from kdpl.common.tensor_files import FeatureFile, update_digest
from kdpl.config.defaults import KDPL
from kdpl.text.prompts import same_names

ImageLike: TypeAlias = str | os.PathLike | Image.Image | np.ndarray | Tensor


class Answer(NamedTuple):
    """A batch of images, as they were given, and what the classifier says about them."""

    images: list[Any]
    probabilities: Tensor  # (B, C), on the CPU
    rejected: Tensor  # (B), bool: none of the classes; False unless asked for


def load(
    path: str | os.PathLike,
    device: str | torch.device | None = None,
    backbone: str | None = None,
) -> "Classifier":
    """Return the classifier that a training has written.

    Args:
        path: the output folder of the training, the file `prompts.safetensors`, or a repository of the Hugging Face Hub,
            "hf-hub:OWNER/NAME" or "hf-hub:OWNER/NAME@REVISION".
        device: "cpu", "cuda", ...; None: a GPU where there is one.
        backbone: where the CLIP is found that the prompts were learned for, if its name or path is another here: anything
            that MODEL.BACKBONE.NAME takes. Its weights must be the same.

    Raises:
        BundleError: the file is missing, damaged, does not fit the CLIP, or the Hub does not give it.
        ModelNameError, WeightsError: see `kdpl.clip.load_clip`.
    """
    return Classifier(read(path), device, backbone)


class Classifier:
    """A CLIP with learned prompts, from images to probabilities over class names.

    An image is a path, a PIL image, a NumPy array (H, W), (H, W, 3) or (H, W, 4), or a tensor (3, H, W); arrays and tensors
    are uint8, uint16, or floats in 0..1. Any orientation and colour mode is understood (`kdpl.common.images`).

    Attributes:
        bundle: what was loaded.
        device: where it computes.
        student: the prompt learner.

    Args:
        bundle: from `read_bundle`.
        device, backbone: see `load`.

    Raises:
        BundleError: the prompts do not fit the CLIP.
    """

    def __init__(
        self,
        bundle: Bundle,
        device: str | torch.device | None = None,
        backbone: str | None = None,
    ):
        self.bundle = bundle
        self.temperature = bundle.decision.temperature or 1.0  # fitted to the teacher by `kdpl fit`
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        name = backbone or bundle.backbone
        try:
            architecture = describe(name)
        except ModelNameError as error:
            raise ModelNameError(f"{error} The prompts belong to this CLIP: give where it is as `backbone`.") from None
        options = fitting_options(bundle, architecture, name)
        precision = options.get("PREC", "fp32")
        # On a CPU in fp32, also where a training took bf16 for a frozen tower: a head for other programs gives the same.
        self.clip = load_clip(name, effective_precision(precision, self.device.type), self.device)
        self.clip.text.max_rows = KDPL["MAX_TEXT_ROWS"]
        what_to_do = "Give the file with the same weights as `backbone` (--backbone)."
        self.student = learned_student(bundle, self.clip, options, name, what_to_do)
        self.encoder = NameEncoder(self.student, bundle.decision.sentences)
        self.decoder = Decoder(bundle.preprocessing)
        self._normalize = Normalize(bundle.preprocessing.mean, bundle.preprocessing.std)
        self._texts = NameTexts(self.encoder, bundle.classnames)
        self._background = NameTexts(self.encoder.for_other_names(), bundle.decision.background)

    # ---------------------------------------------------------------------------------------------------------- class names

    @property
    def classnames(self) -> list[str]:
        """The class names, in the order of the probabilities; others may be set; of class-specific prompts, learned ones.

        Raises:
            ValueError: on setting, no name, an empty one, two that are the same to CLIP, or class-specific prompts have none
                for the list.
        """
        return list(self._texts.names)

    @classnames.setter
    def classnames(self, names: Sequence[str]) -> None:
        if isinstance(names, str) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"classnames is {names!r}, expected a list of names.")
        names = list(names)
        if not names or not all(name.replace("_", " ").strip() for name in names):
            raise ValueError(f"classnames is {names!r}, expected at least one name, and none of them empty.")
        refuse_doubles(names, "classnames", self.clip.tokenizer)
        texts = NameTexts(self.encoder, names)
        if self.encoder.class_specific:
            _ = texts.prepared  # refuses names that were not learned
        self._texts = texts

    def same_names(self) -> str:
        """Return a sentence about class names that have the same text features; empty if there are none."""
        features = self._texts.features
        return "" if features is None else same_names(self.classnames, features, self.clip.name)

    @property
    def text_features(self) -> Tensor:
        """The normalised text features (C, d) of the class names, on the CPU.

        Raises:
            ValueError: the variant has other text features for each image (CoCoOp).
        """
        self.refuse_conditional("has no text features of the class names alone")
        return check_finite(self._texts.features.cpu().clone(), "text features")

    def refuse_conditional(self, what: str) -> None:
        """Raise a ValueError that says what the variant cannot do if every image has text features of its own (CoCoOp)."""
        if self.encoder.depends_on_images:
            raise ValueError(
                f"{self.bundle.variant} {what}: a small net shifts its context by each image's feature, so that every image "
                "has text features of its own. Use the probabilities, or another variant, such as CoOp."
            )

    @property
    def background_features(self) -> Tensor:
        """The normalised text features (K, d) of the names that are none of the classes."""
        names = self.bundle.decision.background
        if self._background.names != names:  # the bundle has got another decision since
            self._background = NameTexts(self.encoder.for_other_names(), names)
        return self._background.features

    # --------------------------------------------------------------------------------------------------------------- images

    def __call__(self, images: ImageLike | Iterable[ImageLike], batch_size: int = BATCH_SIZE) -> Tensor:
        """Return the probabilities (N, C), on the CPU, of one image or several.

        Raises:
            BadImageError: an image cannot be read.
        """
        batches = [answer.probabilities for answer in self.stream(images, batch_size)]
        return torch.cat(batches) if batches else torch.empty(0, len(self.classnames))

    @torch.no_grad()
    def stream(
        self,
        images: ImageLike | Iterable[ImageLike],
        batch_size: int = BATCH_SIZE,
        workers: int = WORKERS,
        on_bad: OnBad | None = None,
        reject: bool = False,
    ) -> Iterator[Answer]:
        """Give, batch by batch, the images as they were given, their probabilities, and whether they are none of the classes.

        Args:
            images: any number of them; they are taken when their turn comes, and no more than two batches are held at a time.
            batch_size: B.
            workers: threads that read images ahead of the model; 0: none.
            on_bad: called with an image that cannot be read and the error, and the image is left out; None: it is raised.
            reject: compare with the background names by the threshold of the bundle.

        Raises:
            BadImageError: an image cannot be read, and there is no `on_bad`.
            ValueError: as `Decision.check_reject`.
            NotFiniteError: an output of the model holds NaN or infinite values.
        """
        if reject:
            self.bundle.decision.check_reject(self.classnames)
        for batch in self.decoder.batches(images, batch_size, workers, on_bad):
            features = self._features(batch)
            logits = self.logits_of(features)  # (B, C)
            rejected = torch.zeros(len(batch), dtype=torch.bool)
            if reject:
                scale = self.student.logit_scale
                others = similarity_logits(scale, features, self.background_features).cpu()  # (B, K)
                inside = (
                    logits if self.encoder.compares_texts else similarity_logits(scale, features, self._texts.features).cpu()
                )
                rejected = check_finite(inside_score(inside, others), "scores") < self.bundle.decision.threshold
            probabilities = check_finite((logits / self.temperature).softmax(dim=-1), "probabilities")
            yield Answer([item.image for item in batch], probabilities, rejected)

    def logits(self, images: ImageLike | Iterable[ImageLike], batch_size: int = BATCH_SIZE) -> Tensor:
        """Return the logits (N, C) in fp32, on the CPU, of which the probabilities are the softmax."""
        rows = [self.logits_of(self._features(batch)) for batch in self.decoder.batches(images, batch_size)]
        return torch.cat(rows) if rows else torch.empty(0, len(self.classnames))

    def image_features(self, images: ImageLike | Iterable[ImageLike], batch_size: int = BATCH_SIZE) -> Tensor:
        """Return the normalised image features (N, d), on the CPU."""
        rows = [self._features(batch).cpu() for batch in self.decoder.batches(images, batch_size)]
        return check_finite(torch.cat(rows), "image features") if rows else torch.empty(0, self.clip.embed_dim)

    @torch.no_grad()
    def logits_of(self, features: Tensor) -> Tensor:
        """Return the logits (B, C) of image features (B, d), just as the training's evaluation does, on the CPU."""
        text = self._texts.features
        if text is None:
            text = self.encoder.features(self._texts.prepared, features)
        return check_finite(self.encoder.logits(self._texts.prepared, text, features).cpu(), "logits")

    @torch.no_grad()
    def _features(self, batch: list[Decoded]) -> Tensor:
        """Return the normalised image features (B, d) of decoded images: computed, or found in the cache."""
        known, new = self.decoder.known, [item for item in batch if item.pixels is not None]
        computed = self.encoder.image_features(self._normalize(stacked_pixels(new).to(self.device))) if new else None
        if known is None:
            return computed
        if computed is not None and (keys := {row: item.key for row, item in enumerate(new) if item.key is not None}):
            known.add([*keys.values()], computed[[*keys]])
        if len(new) == len(batch):
            return computed
        rows = iter(computed) if new else iter(())
        found = iter(known.get([item.key or b"" for item in batch if item.pixels is None]).to(self.device))
        return torch.stack([next(found if item.pixels is None else rows) for item in batch])

    def use_cache(self) -> None:
        """Look up image features that earlier predictions have computed, by `file_key` of the image, and add new ones."""
        clip, prompts = self.clip, hashlib.sha256()
        if not self.encoder.images_are_frozen:
            prompts.update(self.bundle.variant.encode())
            update_digest(prompts, self.bundle.parameters)
        meaning = {
            "CLIP": clip.identity,
            "image prompts": prompts.hexdigest(),
            "preprocessing": dataclasses.asdict(self.bundle.preprocessing),
            "precision": [str(clip.dtype), str(clip.autocast_dtype), str(clip.frozen_autocast_dtype)],
            "device": clip.device.type,
            "libraries": [PIL.__version__, torch.__version__],
            "least": self.decoder.least,
        }
        self.decoder.known = FeatureFile(cache_dir() / "image_features", meaning, clip.embed_dim)

    def export_onnx(self, path: str | os.PathLike, reject: bool = False, half: bool = False) -> Path:
        """Write an ONNX file for the class names as they are, in fp32, and return its path.

        Its input `pixels` (N, 3, R, R) is RGB in 0..1, resized and cut out as the metadata's `preprocessing` says; it
        normalises them itself. Its output `probabilities` (N, C) is in the order of the metadata's `classnames`, a JSON list.

        Args:
            reject: give as a second output `rejected` (N), whether an image is none of the classes.
            half: store the weights in half precision; the file is half as large, and it still computes in fp32.

        Raises:
            ValueError: the variant has other text features for each image (CoCoOp), there is no threshold to reject by, or a
                value is NaN or infinite, in half precision if that is asked for.
            ImportError: the package onnx is not installed.
            OSError: the file could not be written.
        """
        from kdpl.classifier.serve import write_onnx

        return write_onnx(self, path, reject, half)
