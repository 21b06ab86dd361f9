"""The frozen teacher: a large CLIP, or several, whose distribution over class names is the target for the student.

`Teacher`, `PromptedTeacher` with learned prompts and `Ensemble` have the same methods.
"""

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kdpl.clip.model import Clip, similarity_logits
from kdpl.common.tensor_files import update_digest
from kdpl.config.keys import check_key
from kdpl.config.manifest import learner_file
from kdpl.students import Student
from kdpl.text.feature_cache import cached_text_features
from kdpl.text.prompts import SENTENCES_AT_ONCE, template_features


class Teacher:
    """A frozen CLIP's logits over a list of names.

    Args:
        clip: the teacher.
        names: class names `(C)`; their text features are computed once, at construction.
        template: a sentence with `{}` for the name, or several: the normalised mean of their normalised features.
        input_mean, input_std: normalisation of the images it is called with, the student's.
        logit_scale: "student" (as published), "own", or a number.
        cached: read the names' features from the cache on disk, or write them there; for a vocabulary.
        text_features: the normalised features `(C, d)` of the names, if already computed.

    Attributes:
        members: itself; the members of an `Ensemble`.

    Raises:
        ValueError: `logit_scale` is none of these.
    """

    prompts_digest = ""  # of learned prompts
    image_prompts = ""  # the same, if the image features depend on them

    def __init__(
        self,
        clip: Clip,
        names: Sequence[str],
        template: str | Sequence[str],
        input_mean: tuple[float, ...],
        input_std: tuple[float, ...],
        logit_scale: str | float = "student",
        cached: bool = False,
        text_features: Tensor | None = None,
    ):
        self.clip, self.names = clip, list(names)
        self.members, self.templates = (self,), [template] if isinstance(template, str) else list(template)
        if text_features is None:
            with torch.autocast(clip.device.type, enabled=False):  # independent of the caller's autocast
                encode = cached_text_features if cached else template_features
                text_features = encode(clip, self.names, self.templates)
        self.text_features = text_features.to(clip.device)  # (C, d)
        check_key("TRAINER.KDPL.TEACHER_LOGIT_SCALE", logit_scale)
        self.logit_scale = logit_scale if logit_scale in ("student", "own") else float(logit_scale)

        # Images are normalised for the student: x * std + mean, then (· - mean') / std', as one multiply and one add.
        ours, theirs = ((torch.tensor(m), torch.tensor(s)) for m, s in ((input_mean, input_std), (clip.mean, clip.std)))
        self._same_normalization = all(torch.allclose(a, b, atol=1e-6) for a, b in zip(ours, theirs, strict=True))
        self._gain = (ours[1] / theirs[1]).view(3, 1, 1).to(clip.device)
        self._bias = ((ours[0] - theirs[0]) / theirs[1]).view(3, 1, 1).to(clip.device)

    def adapt(self, images: Tensor) -> Tensor:
        """Resize and normalise images `(B, 3, H, W)` for the teacher: `(B, 3, resolution, resolution)`."""
        size = (self.clip.resolution, self.clip.resolution)
        if images.shape[-2:] != size:
            images = F.interpolate(images.float(), size=size, mode="bicubic", antialias=True, align_corners=False)
        return images if self._same_normalization else images * self._gain + self._bias

    def image_features(self, images: Tensor) -> Tensor:
        """Return the normalised image features `(B, d)` in fp32 of images normalised for the student."""
        return self.clip.frozen_image_features(self.adapt(images))

    def texts_of(self, features: Tensor) -> Tensor:
        """Return the normalised text features `(C, d)`, or `(B, C, d)` if they depend on the images' features `(B, d)`."""
        return self.text_features

    @torch.no_grad()
    def logits(self, features: Tensor, student_scale: Tensor) -> Tensor:
        """Return the logits `(B, C)` in fp32 of image features `(B, d)`.

        Args:
            student_scale: exp(logit_scale) of the student, used if `logit_scale` is "student".
        """
        if features.dim() != 2:
            raise ValueError(f"Teacher '{self.clip.name}' gave image features {tuple(features.shape)}, expected (B, d).")
        scale: Any = self.logit_scale
        if isinstance(scale, str):
            scale = student_scale if scale == "student" else self.clip.logit_scale
        return similarity_logits(scale, features, self.texts_of(features))


class PromptedTeacher(Teacher):
    """A frozen CLIP with learned prompts in place of sentences, the setting of PromptKD (arXiv:2403.02781).

    Its text features are computed once, at construction, unless every image has its own (CoCoOp).

    Args:
        prompts: a prompt learner with the teacher's CLIP and what was learned for it.
        names, input_mean, input_std, logit_scale: as of `Teacher`.

    Raises:
        ValueError: the prompts are class-specific and were not learned for these names, or no text is learned.
    """

    def __init__(
        self,
        prompts: Student,
        names: Sequence[str],
        input_mean: tuple[float, ...],
        input_std: tuple[float, ...],
        logit_scale: str | float = "student",
    ):
        if prompts.has_own_logits():
            raise ValueError(
                f"{type(prompts).__name__} does not teach: its logits are its own. Give prompts of another learner."
            )
        self.prompts, clip = prompts.requires_grad_(False).eval(), prompts.clip
        self._prepared = prompts.prepare(names) if prompts.text_depends_on_images else None
        known = torch.empty(0, clip.embed_dim) if prompts.text_depends_on_images else self._encode(names)
        super().__init__(clip, names, (), input_mean, input_std, logit_scale, text_features=known)

    @torch.no_grad()
    def _encode(self, names: Sequence[str]) -> Tensor:
        step = len(names) if self.prompts.class_specific else SENTENCES_AT_ONCE  # bounds the memory for long lists
        with self.prompts.clip.autocast(frozen=True):
            parts = [self.prompts.prepare(names[i : i + step]) for i in range(0, len(names), step)]
            return torch.cat([self.prompts.text_features(part).float() for part in parts])

    @cached_property
    def prompts_digest(self) -> str:  # type: ignore[override]
        learner = self.prompts
        options = {key: value for key, value in learner.options.items() if key != "PREC"}
        facts = [type(learner).__name__, options, learner_file(type(learner))]
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
        update_digest(digest, learner.learned.state_dict())
        return digest.hexdigest()

    @property
    def image_prompts(self) -> str:  # type: ignore[override]
        return "" if self.prompts.image_features_are_frozen else self.prompts_digest

    def image_features(self, images: Tensor) -> Tensor:
        if self.prompts.image_features_are_frozen:
            return super().image_features(images)
        with torch.inference_mode(), self.clip.autocast(frozen=True):
            features = self.prompts.image_features(self.adapt(images))
        return features.clone()  # as in `Teacher`

    @torch.no_grad()
    def texts_of(self, features: Tensor) -> Tensor:
        if self._prepared is None:
            return self.text_features
        with self.clip.autocast(frozen=True):
            return self.prompts.text_features(self._prepared, features)


class Ensemble:
    """Several teachers over the same names, whose distributions are averaged (`kdpl.distill.loss.mean_logits`).

    Args:
        members: M of them, at least two.

    Raises:
        ValueError: their names differ.
    """

    def __init__(self, members: Sequence[Teacher]):
        self.members, self.names = tuple(members), members[0].names
        for member in members:
            if member.names != self.names:
                raise ValueError(f"The teachers' names differ: {len(self.names)} and {len(member.names)}.")

    def image_features(self, images: Tensor) -> list[Tensor]:
        """Return each member's normalised image features `(B, d)`, of images normalised for the student."""
        return [member.image_features(images) for member in self.members]

    def logits(self, features: Sequence[Tensor], student_scale: Tensor) -> Tensor:
        """Return each member's logits, `(M, B, C)` in fp32, of its image features; see `Teacher.logits`."""
        return torch.stack([m.logits(f, student_scale) for m, f in zip(self.members, features, strict=True)])
