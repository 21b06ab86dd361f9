"""The cost of a training step: the operations of the objective that trains, counted on tensors without values.

The towers are built from their names alone on the meta device (`outline_clip`), and a step of the objective runs on fake
tensors, which have shapes and types and no values. So nothing is loaded, a step takes seconds whatever the model, and the
counts follow the implementation by themselves.
"""

import contextlib
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from yacs.config import CfgNode

from kdpl.clip.loading import describe, outline_clip
from kdpl.clip.precision import effective_precision
from kdpl.config.choices import ConfigError, is_distilled
from kdpl.config.teachers import teacher_names
from kdpl.distill.objective import CrossEntropy, Distillation
from kdpl.distill.teacher import Teacher
from kdpl.students import Student

aten = torch.ops.aten
PARTS = ("teacher image", "student image", "text", "loss", "optimiser")
# PyTorch's own formulas, which lack the names that attention has on a CPU.
_FORMULAS = flop_registry | {
    aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[aten._scaled_dot_product_flash_attention],
    aten._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[aten._scaled_dot_product_flash_attention_backward],
}


class Op(NamedTuple):
    """An operation of one size."""

    part: str  # of the step, one of PARTS
    dtype: torch.dtype
    flops: int  # multiplications and additions of matrix products
    bytes: int  # read and written


class Tally(TorchDispatchMode):
    """Counts what runs inside it, part by part, and how much memory is alive at the same time.

    Attributes:
        ops: how often each operation ran.
        part: the part of the step that runs.
        alive: bytes of what was made inside it and is still in memory.
        peak: the most bytes that were alive.
    """

    def __init__(self):
        super().__init__()
        self.ops: Counter[Op] = Counter()
        self.part = PARTS[0]
        self.alive = self.peak = 0

    @contextlib.contextmanager
    def of(self, part: str) -> Iterator[None]:
        """Count what runs inside as a part of the step."""
        previous, self.part = self.part, part
        try:
            yield
        finally:
            self.part = previous

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func is not torch.ops.prim.device.default:
            with self:  # what is made of other operations counts as these
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = func(*args, **kwargs)
        inputs, outputs = ([t for t in tree_leaves(tree) if isinstance(t, Tensor)] for tree in ((args, kwargs), result))
        old = {t.untyped_storage()._cdata for t in inputs}
        storages = {storage._cdata: storage for storage in map(Tensor.untyped_storage, outputs)}
        new = [storage for key, storage in storages.items() if key not in old]
        if new or (outputs and func._schema.is_mutable):  # else a view, which costs nothing
            formula = _FORMULAS.get(func.overloadpacket)
            flops = formula(*args, **kwargs, out_val=result) if formula else 0
            self.ops[Op(self.part, outputs[0].dtype, flops, _size([*inputs, *outputs]))] += 1
        for storage in new:
            self._grow(storage.nbytes())
            weakref.finalize(storage, self._grow, -storage.nbytes())
        return result

    def _grow(self, size: int) -> None:
        self.alive += size
        self.peak = max(self.peak, self.alive)

    def flops(self, *parts: str) -> int:
        """Return the FLOP of the given parts, of all by default."""
        return sum(op.flops * n for op, n in self.ops.items() if not parts or op.part in parts)


class StepCost(NamedTuple):
    """Counts of one training step of one rank."""

    tally: Tally
    batch: int
    reads_images: bool  # False: all features that the step needs are known
    embed_dim: int  # of the student
    student_bytes: int  # weights
    teacher_bytes: int
    learned_bytes: int  # learned parameters


def count_step(cfg: CfgNode, names: Sequence[str], batch: int, device_type: str = "cpu", cached: bool = False) -> StepCost:
    """Run one training step of one rank on tensors without values and return its counts.

    Args:
        cfg: of the run: trainer, both CLIPs, their precisions and MAX_TEXT_ROWS.
        names: class names that the rank encodes.
        batch: its images.
        device_type: "cpu" or "cuda", on which a PREC may mean different things.
        cached: the features of frozen towers are known.

    Raises:
        ModelNameError, WeightsError, ValueError: an unknown CLIP, one that the learner cannot take, or a teacher with prompts.
        RuntimeError, AttributeError: from inside a tower that is not made for its precision.
    """
    options, distilled = cfg.TRAINER.KDPL, is_distilled(cfg.TRAINER.NAME)
    learner = Student.known[cfg.TRAINER.NAME.removeprefix("KDPL_")]
    precisions = (effective_precision(cfg.TRAINER[learner.node].PREC, device_type, frozen) for frozen in (False, True))
    if distilled and options.TEACHER_PROMPTS:
        raise ConfigError(
            f"TRAINER.KDPL.TEACHER_PROMPTS '{options.TEACHER_PROMPTS}': a teacher with learned prompts is not counted. Leave "
            "it out: a few more tokens in each pass are what it costs."
        )
    clip = outline_clip(cfg.MODEL.BACKBONE.NAME, *precisions)
    clip.bound_text(options.MAX_TEXT_ROWS)
    frozen = effective_precision(options.PREC, device_type, frozen=True)
    taught = teacher_names(options.TEACHER) if distilled else []
    teacher_clips = [outline_clip(name, frozen) for name in taught]
    widths = [describe(name).embed_dim for name in taught]
    mode, tally = FakeTensorMode(allow_non_fake_inputs=True), Tally()
    with mode:
        for outlined in (clip, *teacher_clips):
            outlined.model.to_empty(device="cpu")
        student = learner(clip, cfg.TRAINER[learner.node], names)
        needs_pixels = not (cached and student.image_features_are_frozen)
        image_features, text_features = torch.empty(batch, clip.embed_dim), torch.empty(len(names), clip.embed_dim)
        teacher_features, teacher_texts = ([torch.empty(n, width) for width in widths] for n in (batch, len(names)))
    student.frozen_text_features = lambda names, templates=(): text_features  # from a cache
    known = {"frozen_features": image_features} if cached and student.reads_frozen_image_features else {}
    if distilled:
        pairs = zip(teacher_clips, teacher_texts, strict=True)
        members = [Teacher(each, names, "{}", clip.mean, clip.std, text_features=texts) for each, texts in pairs]
        objective = Distillation(student, members, names)
        known |= {"teacher_features": teacher_features if len(members) > 1 else teacher_features[0]} if cached else {}
        for member in members:
            _count_as(tally, "teacher image", member, "image_features")
    else:
        objective = CrossEntropy(student, names)
        known["labels"] = torch.zeros(batch, dtype=torch.long)
    _count_as(tally, "text", student, "text_features")
    for method in ("frozen_image_features", "image_features"):
        _count_as(tally, "student image", student, method)
    learned = list(student.learned.parameters())
    optimiser = torch.optim.SGD(learned, lr=0.1, momentum=0.9, weight_decay=5e-4)
    with mode:
        for parameter in learned:  # from the second step on the momentum is there
            optimiser.state[parameter]["momentum_buffer"] = torch.empty_like(parameter)
        with tally, tally.of("loss"):
            images = torch.empty(batch, 3, clip.resolution, clip.resolution) if needs_pixels else None
            loss, _ = objective(images, **known)
            loss.backward()
            with tally.of("optimiser"):
                optimiser.step()
    teacher_bytes = sum(_size(each.model.parameters()) for each in teacher_clips)
    sizes = (_size(clip.model.parameters()), teacher_bytes, _size(learned))
    return StepCost(tally, batch, needs_pixels, clip.embed_dim, *sizes)


def _size(tensors: Iterable[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def _count_as(tally: Tally, part: str, owner: Any, name: str) -> None:
    """Count a method of `owner`, and the gradient of what it returns, as a part of the step."""
    method = getattr(owner, name)

    def counted(*args: Any, **kwargs: Any) -> Tensor:
        with tally.of(part):
            features = method(*args, **kwargs)

        def begin(gradient: Tensor) -> None:  # autograd finishes a tower before it begins an earlier one
            tally.part = part

        if features.requires_grad:
            features.register_hook(begin)
        return features

    setattr(owner, name, counted)
