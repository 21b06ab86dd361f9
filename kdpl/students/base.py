"""The base of every prompt learner: a frozen CLIP, a small module of learned parameters, and the way to logits.

A new learner is a subclass that overrides what differs (docs/new_student.md): `defaults` and `check` are its options,
`build` fills `self.learned`, `prepare` computes the constants of a list of class names, and `image_features` and
`text_features` turn images and names into features.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn

from kdpl.clip.loading import architecture_of
from kdpl.clip.model import Clip, similarity_logits
from kdpl.clip.names import Architecture
from kdpl.common import distributed
from kdpl.common.messages import shorten
from kdpl.config.defaults import add_learner, learner_options
from kdpl.students.pieces import check_context, check_depth
from kdpl.text.feature_cache import TextFeatures
from kdpl.text.templates import DEFAULT

ALWAYS = "always"  # of `learns_class_specific`
RESERVE = 24  # tokens beside a name: start, end, full stop, and 16 context vectors or the longest sentence of an ensemble


class Output(NamedTuple):
    """A student's logits and normalised features of a batch."""

    logits: Tensor  # (B, C)
    image_features: Tensor  # (B, d)
    text_features: Tensor  # (C, d), or (B, C, d) if every image has its own
    teacher_logits: Tensor | None = None  # (B, C), in the regularisers of a distillation


class Student(nn.Module):
    """A frozen CLIP with learned prompts.

    `self.learned` is the only module that is trained, registered and saved; its parameters have the names of the published
    checkpoints.

    Args:
        clip: the frozen CLIP.
        options: values of the learner's options, `TRAINER.<node>`; missing ones have their defaults.
        names: the class names of the training; only class-specific prompts depend on them.
        template: the data set's hand-written sentence, with `{}` for the name.

    Raises:
        ConfigError: an option is unknown or has a value of another type.
        ValueError: the options do not fit the CLIP, see `check`.
    """

    known: ClassVar[dict[str, type["Student"]]] = {}  # all learners by class name, including external ones

    node: ClassVar[str]  # the configuration node of its options
    defaults: ClassVar[dict[str, Any]]  # the options, as a literal: kdpl.config.defaults reads it without importing PyTorch
    texts: ClassVar[dict[str, str]] = {}  # what its options do, for the reference, if kdpl/config/keys.py does not say it
    model_name: ClassVar[str] = "prompt_learner"  # the name under which the forks register and save it
    image_features_are_frozen: ClassVar[bool] = False  # nothing learned is in the image tower, and no step has to run it
    reads_frozen_image_features: ClassVar[bool] = False  # uses them as its own, or in its regularisers
    text_depends_on_images: ClassVar[bool] = False  # every image has its own text features
    beside_blocks: ClassVar[tuple[str, ...]] = ()  # of "text" and "image": towers with functions beside blocks, see `check`
    learns_class_specific: ClassVar[str] = ""  # the option that gives every class parameters of its own, or ALWAYS
    learned_for_each: ClassVar[str] = "a context"  # what a class has of its own, for messages
    uses_template: ClassVar[bool] = False  # the data set's sentence is part of what is learned
    closed_form: ClassVar[bool] = False  # `collect` takes the batches, and `end_epoch` solves: no step, no gradient

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        cls.reads_frozen_image_features |= cls.image_features_are_frozen
        if cls.__name__ in Student.known and Student.known[cls.__name__].__module__.startswith("kdpl.students."):
            return
        if "defaults" in vars(cls):
            add_learner(cls.node, cls.defaults)
        Student.known[cls.__name__] = cls

    def __init__(
        self, clip: Clip, options: Mapping[str, Any] | None = None, names: Sequence[str] = (), template: str = DEFAULT
    ):
        super().__init__()
        self.clip, self.names = clip, list(names)
        self.options = learner_options(self.node, options or {})
        self.class_specific = self.is_class_specific(self.options)
        self.template = template
        self.learned = nn.Module()
        self._ensembles: dict[tuple[str, ...], TextFeatures] = {}
        self.check(self.options, architecture_of(clip), clip.name)
        self.build(names)

    def build(self, names: Sequence[str]) -> None:
        """Register the learned parameters in `self.learned`."""
        raise NotImplementedError

    @classmethod
    def is_class_specific(cls, options: Mapping[str, Any]) -> bool:
        """Return whether every training class has parameters of its own with these options."""
        option = cls.learns_class_specific
        return option == ALWAYS or bool(option and options.get(option))

    @classmethod
    def check(cls, options: Mapping[str, Any], architecture: Architecture, name: str) -> None:
        """Raise a ValueError that names both values if these options do not fit the CLIP `name`."""
        no_text = "text" in cls.beside_blocks and architecture.no_deep_text
        if no_text or ("image" in cls.beside_blocks and not architecture.is_vit):
            raise ValueError(
                f"TRAINER.{cls.node} adds to the blocks of {' and '.join(cls.beside_blocks)} tower, which MODEL.BACKBONE.NAME "
                f"'{name}' does not allow: choose a plain ViT CLIP, such as 'ViT-B/32'."
            )
        for key, value in options.items():
            if key.startswith("PROMPT_DEPTH"):
                check_depth(f"TRAINER.{cls.node}", key, value, architecture, name)
            elif key.startswith("N_CTX"):
                check_context(f"TRAINER.{cls.node}", key, value, architecture, name, bool(options.get("CTX_INIT")))

    @property
    def longest_name(self) -> int:
        """How many tokens a class name may have, so that every prompt and sentence about it fits."""
        own = int(self.context.length_without_name) if hasattr(self, "context") else 0
        return self.clip.tokenizer.context_length - self.clip.tokenizer.stripped - max(RESERVE, own)

    @property
    def logit_scale(self) -> Tensor:
        """exp(logit_scale) of the frozen CLIP."""
        return self.clip.logit_scale

    def prepare(self, names: Sequence[str]) -> Any:
        """Return the constants of a list of class names, computed once per list and passed to the other methods.

        By default they are the prompts of `self.context`, a `TextContext` (kdpl/students/pieces.py).
        """
        return self.context.layout(names)

    def learned_rows(self, names: Sequence[str]) -> list[int]:
        """Return the rows of class-specific parameters that belong to these names, whatever their order.

        Raises:
            ValueError: a name was not learned, or belongs to several rows.
        """
        rows = {name.replace("_", " "): row for row, name in enumerate(self.names)}
        keys = [name.replace("_", " ") for name in names]
        other = [name for name, key in zip(names, keys, strict=True) if key not in rows]
        if other or len(rows) < len(self.names):
            why = f"{shorten(other)} are not among them" if other else "some of them are the same"
            raise ValueError(
                f"{type(self).__name__} is class-specific: it learned {self.learned_for_each} for each of {len(self.names)} "
                f"names, and {why}. Use learned names alone (--classnames), or a learner for any name, such as CoOp."
            )
        return [rows[key] for key in keys]

    def text_features(self, prepared: Any, image_features: Tensor | None = None) -> Tensor:
        """Return normalised text features `(C, d)`, or `(B, C, d)` if they depend on the images."""
        raise NotImplementedError

    def image_features(self, images: Tensor) -> Tensor:
        """Return normalised image features `(B, d)` of images `(B, 3, H, W)`; by default the frozen CLIP's."""
        return self.frozen_image_features(images)

    def frozen_image_features(self, images: Tensor) -> Tensor:
        """Return the frozen CLIP's normalised image features `(B, d)` in fp32, without gradient."""
        return self.clip.frozen_image_features(images)

    def frozen_text_features(self, names: Sequence[str], templates: Sequence[str] = ()) -> Tensor:
        """Return the frozen CLIP's text features `(C, d)` of names, computed once per name.

        A feature is the normalised mean over the templates of unnormalised features.

        Args:
            templates: sentences with `{}` for the name; by default the data set's hand-written one.
        """
        templates = tuple(templates) or (self.template,)
        if templates not in self._ensembles:
            self._ensembles[templates] = TextFeatures(self.clip, templates)
        return self._ensembles[templates](names)

    def forward(
        self, images: Tensor | None, prepared: Any, text_features: Tensor | None = None, frozen: Tensor | None = None
    ) -> Output:
        """Return logits and features of a batch.

        Args:
            images: `(B, 3, H, W)`, normalised; None if `frozen` is given and `image_features_are_frozen`.
            prepared: what `prepare` (or `prepare_names`) returned for the class names.
            text_features: of `encode_names`, if already computed (in an evaluation).
            frozen: of `frozen_image_features`, `(B, d)`, if already computed.
        """
        own = frozen is None or not self.image_features_are_frozen
        f = self.image_features(images) if own else frozen  # (B, d)
        g = encode_names(self, prepared, f) if text_features is None else text_features
        return Output(self.logits(f, g, prepared), f, g)

    @classmethod
    def has_own_logits(cls) -> bool:
        """Return whether logits are more than the scaled cosines of image and text features."""
        return cls.logits is not Student.logits

    def logits(self, image_features: Tensor, text_features: Tensor, prepared: Any) -> Tensor:
        """Return logits `(B, C)`; by default the scaled cosines of the features."""
        return similarity_logits(self.logit_scale, image_features, text_features)

    def regularisers(self, output: Output, frozen: Tensor | None, names: Sequence[str]) -> dict[str, Tensor]:
        """Return the learner's own loss terms by name, already weighted; they are added to the main loss.

        Args:
            frozen: `frozen_image_features` of the batch `(B, d)`, if `reads_frozen_image_features`.
        """
        return {}

    def end_epoch(self, epoch: int, max_epoch: int) -> None:
        """Finish epoch number `epoch`, counted from 0."""
        self.write_features()

    def write_features(self) -> None:
        """Write the frozen text features that are known to the cache: a run that resumes from now on reads all of them."""
        for ensemble in self._ensembles.values():
            ensemble.flush()

    def extra_state_dict(self) -> dict[str, Any]:
        """Return tensors and numbers beyond the learned parameters that a resumed run needs."""
        return {}

    def load_extra_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `extra_state_dict` returned."""


class Shard(NamedTuple):
    """One rank's share of the class names."""

    prepared: Any  # the student's constants of these names
    counts: list[int]  # number of names of each rank


def prepare_names(student: Student, names: Sequence[str], shard_classes: bool) -> Any:
    """Return the student's constants of class names; with `shard_classes`, in a job of several ranks, of this rank's share.

    Ranks do not share names of which there are fewer, nor those that have parameters of their own or depend on the images.
    """
    ranks, own = distributed.world(), student.class_specific or student.text_depends_on_images
    if not shard_classes or ranks == 1 or own or len(names) < ranks:
        return student.prepare(names)
    return Shard(student.prepare(names[distributed.share(len(names))]), distributed.share_lengths(len(names)))


def encode_names(student: Student, prepared: Any, image_features: Tensor | None = None) -> Tensor:
    """Return the student's `text_features` of all names, gathered from all ranks if each has a share of them."""
    if isinstance(prepared, Shard):
        return distributed.gather_with_gradient(student.text_features(prepared.prepared), prepared.counts)
    return student.text_features(prepared, image_features)
