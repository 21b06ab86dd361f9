"""From a bundle to a prompt learner on its CLIP, compared with its weights, and from class names to their text features."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from yacs.config import CfgNode

from kdpl.bundle import Bundle, BundleError
from kdpl.clip.model import Clip, similarity_logits
from kdpl.clip.names import Architecture
from kdpl.clip.preprocessing import Tokenizer
from kdpl.config.defaults import learner_options
from kdpl.config.manifest import differences
from kdpl.students import Student
from kdpl.text.prompts import CLIPS_OWN, encode, ensemble_features
from kdpl.text.templates import DEFAULT
from kdpl.training.checkpoint import CheckpointError, load_learned


def fitting_options(bundle: Bundle, architecture: Architecture, name: str) -> CfgNode:
    """Return the options of a bundle's prompt learner, which fit the CLIP `name`.

    Raises:
        BundleError: they do not, or the prompts take images of another size.
    """
    size, side = bundle.preprocessing.size, architecture.resolution
    try:
        if size != (side, side):
            raise ValueError(f"the prompts take images of {size}, '{name}' of {(side, side)}")
        options = learner_options(bundle.student_class.node, bundle.options)
        bundle.student_class.check(options, architecture, name)
    except ValueError as error:
        raise _misfit(bundle, name, error) from error
    return options


def learned_student(bundle: Bundle, clip: Clip, options: CfgNode, name: str, what_to_do: str) -> Student:
    """Return the prompt learner of a bundle on its CLIP, with what was learned, frozen.

    Args:
        options: of `fitting_options`.
        name: of the CLIP, for errors.
        what_to_do: the end of the message if it is another CLIP than that of the prompts.

    Raises:
        BundleError: the CLIP is not the one that the prompts were learned for, by its weights and, as far as the bundle has it,
            its design; or the prompts do not fit.
    """
    if clip.weights_digest != bundle.backbone_sha256:
        raise BundleError(
            f"The weights of '{name}' are not those that the prompts were learned for ('{bundle.backbone}', SHA-256 "
            f"{bundle.backbone_sha256[:12]}...). {what_to_do}"
        )
    other = list(differences(bundle.backbone_design, clip.design, "in the bundle").values()) if bundle.backbone_design else []
    if not other and clip.preprocessing != bundle.preprocessing:
        other = [f"preprocessing: {bundle.preprocessing} in the bundle, {clip.preprocessing} now"]
    if other:
        raise BundleError(
            f"'{name}' has the weights that the prompts were learned for, but computes something else: {'; '.join(other)}. "
            f"{what_to_do}"
        )
    student = bundle.student_class(clip, options, bundle.classnames, bundle.template or DEFAULT)
    try:
        load_learned(student.learned.float(), bundle.parameters, "the bundle")
    except CheckpointError as error:
        raise _misfit(bundle, name, error) from error
    return student.requires_grad_(False).eval().to(clip.device)


def _misfit(bundle: Bundle, name: str, error: Exception) -> BundleError:
    return BundleError(f"The prompts of {bundle.trainer} for '{bundle.backbone}' do not fit '{name}': {error}")


class NameEncoder:
    """From names to text features, and from images to the image features that belong to them.

    Args:
        student: the prompt learner.
        sentences: hand-written sentences with `{}` for the name; empty: the learned prompts are used.
    """

    def __init__(self, student: Student, sentences: Sequence[str] = ()):
        self.student, self.sentences = student, list(sentences)

    @property
    def depends_on_images(self) -> bool:
        """Whether every image has text features of its own (CoCoOp)."""
        return not self.sentences and self.student.text_depends_on_images

    @property
    def class_specific(self) -> bool:
        """Whether there are prompts for the names of the training alone."""
        return not self.sentences and self.student.class_specific

    @property
    def compares_texts(self) -> bool:
        """Whether logits are the scaled cosines of image and text features, and so a matrix of the latter is all there is."""
        return bool(self.sentences) or not self.student.has_own_logits()

    @property
    def images_are_frozen(self) -> bool:
        """Whether the image features are those of the frozen CLIP."""
        return bool(self.sentences) or self.student.image_features_are_frozen

    def for_other_names(self) -> "NameEncoder":
        """Return the encoder of names that were not learned: of class-specific prompts the frozen CLIP with their sentence."""
        return NameEncoder(self.student, [self.student.template]) if self.class_specific else self

    def prepare(self, names: Sequence[str]) -> Any:
        """Return what `features` needs of the names."""
        return list(names) if self.sentences else self.student.prepare(names)

    @torch.no_grad()
    def features(self, prepared: Any, image_features: Tensor | None = None) -> Tensor:
        """Return the normalised text features (C, d), or (B, C, d) if `depends_on_images`."""
        with self.student.clip.autocast(frozen=bool(self.sentences)):
            if self.sentences:
                return ensemble_features(self.student.clip, prepared, self.sentences)
            return self.student.text_features(prepared, image_features)

    @torch.no_grad()
    def logits(self, prepared: Any, text_features: Tensor, image_features: Tensor) -> Tensor:
        """Return the logits (B, C) of image features (B, d), whatever names they were prepared for."""
        if self.sentences:
            return similarity_logits(self.student.logit_scale, image_features, text_features)
        return self.student.logits(image_features, text_features, prepared)

    @torch.no_grad()
    def image_features(self, images: Tensor) -> Tensor:
        """Return the normalised image features (B, d) of normalised images."""
        with self.student.clip.autocast(self.images_are_frozen):
            if self.sentences:
                return self.student.frozen_image_features(images)
            return self.student.image_features(images)


class NameTexts:
    """A list of names and what an encoder makes of it, when it is first needed."""

    def __init__(self, encoder: NameEncoder, names: Sequence[str]):
        self.encoder, self.names = encoder, list(names)

    @cached_property
    def prepared(self) -> Any:
        """What `NameEncoder.features` needs of the names."""
        if not self.names:
            raise ValueError("The prompts were learned without class names: set `classnames` (--classnames) to yours first.")
        return self.encoder.prepare(self.names)

    @cached_property
    def features(self) -> Tensor | None:
        """The normalised text features (C, d); None if every image has its own."""
        return None if self.encoder.depends_on_images else self.encoder.features(self.prepared)


def refuse_doubles(names: Sequence[str], source: str, tokenizer: Tokenizer = CLIPS_OWN) -> None:
    """Refuse class names that become the same tokens: "Ice_Hockey" and "ice hockey" would share their probability.

    Args:
        source: where the names are from, for the message.
        tokenizer: of the text tower.

    Raises:
        ValueError: two names are the same to the text tower; the message has both spellings.
    """
    first: dict[tuple[int, ...], str] = {}
    for name in names:
        tokens = tuple(encode(name.replace("_", " "), tokenizer))
        if tokens in first:
            same = "twice" if first[tokens] == name else f"and '{first[tokens]}', which are the same words to CLIP"
            raise ValueError(f"{source} has '{name}' {same}: the two would share its probability. Remove one of them.")
        first[tokens] = name
