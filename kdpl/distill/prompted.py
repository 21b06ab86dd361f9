"""A teacher with learned prompts, the setting of PromptKD (arXiv:2403.02781), whose teacher was trained before."""

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from kdpl.common.tensor_files import update_digest
from kdpl.config.manifest import learner_file
from kdpl.distill.teacher import Teacher
from kdpl.students import Student
from kdpl.text.prompts import SENTENCES_AT_ONCE


class PromptedTeacher(Teacher):
    """A frozen CLIP with learned prompts in place of sentences.

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
    def prompts_digest(self) -> str:
        learner = self.prompts
        options = {key: value for key, value in learner.options.items() if key != "PREC"}
        facts = [type(learner).__name__, options, learner_file(type(learner))]
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
        update_digest(digest, learner.learned.state_dict())
        return digest.hexdigest()

    @property
    def image_prompts(self) -> str:
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
