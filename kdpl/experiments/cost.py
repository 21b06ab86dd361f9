"""The cost of a training step: the operations of the objective that trains, counted on tensors without values.

The towers are built from their names alone on the meta device (`outline_clip`), and a step of the objective runs on fake
tensors, which have shapes and types and no values. So nothing is loaded, a step takes seconds whatever the model, and the
counts follow the implementation by themselves.
"""

import contextlib
import math
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import conv_flop_count

from kdpl.clip.loading import outline_clip
from kdpl.clip.model import Clip
from kdpl.distill.objective import CrossEntropy, Distillation
from kdpl.distill.teacher import Teacher
from kdpl.students import Student

aten = torch.ops.aten
PARTS = ("teacher image", "student image", "text", "loss", "optimiser")
ALLOCATION = 512  # bytes that PyTorch's allocator on a GPU rounds up to
_GATHERS = {aten.index_select.default, aten.index.Tensor, aten.gather.default, aten.embedding.default}  # read what they give
# What computes more than it moves on a CPU: exponentials, and sums over rows.
_MATH = ("silu", "gelu", "softmax", "sigmoid", "exp", "layer_norm", "linalg_vector_norm", "upsample", "pow", "tanh")


class Op(NamedTuple):
    """A kind of operation of one size."""

    part: str  # of the step, one of PARTS
    kind: str  # "matmul", "attention", "attention backward", "math" or "move"
    dtype: torch.dtype
    flops: int  # multiplications and additions of matrix products
    bytes: int  # read and written
    rows: int  # of the output of a matrix product; else 0


class Tally(TorchDispatchMode):
    """Counts what runs inside it, part by part, and how much memory is alive at the same time.

    Attributes:
        ops: how often each operation ran.
        part: the part of the step that runs.
        peak: the most bytes that were alive of what was made inside it.
        kept: bytes that each part stores for its gradient: the growth of what is alive when it first ran.
    """

    def __init__(self):
        super().__init__()
        self.ops: Counter[Op] = Counter()
        self.part = PARTS[0]
        self.kept: dict[str, int] = {}
        self.alive = self.peak = 0
        self._seen: dict[int, weakref.ref] = {}

    @contextlib.contextmanager
    def of(self, part: str) -> Iterator[None]:
        """Count what runs inside as a part of the step."""
        previous, self.part, before = self.part, part, self.alive
        try:
            yield
        finally:
            self.part = previous
            self.kept.setdefault(part, self.alive - before)

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.prim.device.default:
            return func(*args, **kwargs)
        with self:  # what is made of other operations counts as these
            result = func.decompose(*args, **kwargs)
        if result is not NotImplemented:
            return result
        result = func(*args, **kwargs)
        inputs = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        outputs = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
        old = {t.untyped_storage()._cdata for t in inputs}
        new = [t for t in outputs if t.untyped_storage()._cdata not in old]
        if new or (outputs and func._schema.is_mutable):  # else a view, which costs nothing
            self._count(func, args, inputs, outputs)
        for tensor in new:
            self._follow(tensor)
        return result

    def _count(self, func: Any, args: Sequence, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        name = func._schema.name
        kind, flops, rows = "math" if any(word in name for word in _MATH) else "move", 0, 0
        if func in (aten.mm.default, aten.bmm.default, aten.addmm.default, aten.baddbmm.default):
            a, b = args[-2:]
            kind, rows = "matmul", a.shape[-2]
            flops = 2 * math.prod(a.shape) * b.shape[-1]
        elif func is aten.convolution.default:
            kind, rows = "matmul", math.prod(outputs[0].shape) // outputs[0].shape[1]
            flops = conv_flop_count(args[0].shape, args[1].shape, outputs[0].shape, transposed=args[6])
        elif "scaled_dot_product" in name or "flash_attention" in name:
            backward = "backward" in name
            q, k = args[backward : backward + 2]  # (batch, heads, L, head_dim); the gradient of the output comes first
            kind, rows = "attention backward" if backward else "attention", q.shape[-2]
            # Two products; the gradients are four, and the fused kernels compute the first product again.
            flops = (5 if backward else 2) * 2 * math.prod(q.shape) * k.shape[-2]
        read = outputs if func in _GATHERS else inputs
        self.ops[Op(self.part, kind, outputs[0].dtype, flops, sum(map(_bytes, read)) + sum(map(_bytes, outputs)), rows)] += 1

    def _follow(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._seen:
            return
        size = -(-storage.nbytes() // ALLOCATION) * ALLOCATION

        def end(_: object) -> None:
            self.alive -= size
            del self._seen[key]

        self._seen[key] = weakref.ref(storage, end)
        self.alive += size
        self.peak = max(self.peak, self.alive)

    def flops(self, *parts: str) -> int:
        """Return the FLOP of the given parts, of all by default."""
        return sum(op.flops * n for op, n in self.ops.items() if not parts or op.part in parts)


def _bytes(tensor: Tensor) -> int:
    """Bytes that reading a tensor touches: an expanded one has fewer than its shape says."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


class Settings(NamedTuple):
    """What one rank's step is made of."""

    learner: type[Student]
    options: Any  # the learner's configuration node
    student: str
    teacher: str  # empty: with labels
    names: Sequence[str]
    batch: int
    student_precision: str = "fp32"  # as PREC, on the device: fp16, fp32, amp or bf16
    frozen_precision: str = "fp32"  # of the student's image tower if nothing learned touches it
    teacher_precision: str = "fp32"
    max_text_rows: int = 8192
    cached: bool = False  # the features of frozen towers are known
    size: int = 0  # side of the images; 0: the student's resolution


class StepCost(NamedTuple):
    """Counts of one training step."""

    tally: Tally
    student_bytes: int  # weights
    teacher_bytes: int
    learned_bytes: int  # learned parameters
    text_rows: int  # tokens that the text pass runs: the class names' prompts, their shared beginning once


def count_step(settings: Settings) -> StepCost:
    """Run one training step on tensors without values and return its counts.

    Raises:
        ModelNameError, WeightsError, ValueError: an unknown CLIP, or one that the learner cannot take.
    """
    s = settings
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    clip = _outline(s.student, s.student_precision, s.frozen_precision, mode)
    clip.bound_text(s.max_text_rows)
    with mode:
        known_text = torch.empty(len(s.names), clip.embed_dim)

    with mode:
        student = s.learner(clip, s.options, s.names)
    student.frozen_text_features = lambda names, templates=(): known_text  # from a cache
    if s.teacher:
        teacher_clip = _outline(s.teacher, s.teacher_precision, s.teacher_precision, mode)
        with mode:
            known = torch.empty(len(s.names), _embed_dim(teacher_clip))
        teacher = Teacher(teacher_clip, s.names, "{}", clip.mean, clip.std, text_features=known)
        objective = Distillation(student, teacher, s.names)
    else:
        teacher, objective = None, CrossEntropy(student, s.names)
    learned = list(student.learned.parameters())
    optimiser = torch.optim.SGD(learned, lr=0.1, momentum=0.9, weight_decay=5e-4)
    with mode:
        for parameter in learned:  # from the second step on the momentum is there
            optimiser.state[parameter]["momentum_buffer"] = torch.empty_like(parameter)
        tally = Tally()
        with tally:
            _take_step(s, student, teacher, objective, optimiser, tally)
    teacher_bytes = _size(teacher.clip.model.parameters()) if teacher else 0
    rows = len(getattr(objective.prepared, "rows", ()))
    return StepCost(tally, _size(clip.model.parameters()), teacher_bytes, _size(learned), rows)


def _size(tensors: Iterable[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def _take_step(
    s: Settings,
    student: Student,
    teacher: Teacher | None,
    objective: Distillation | CrossEntropy,
    optimiser: torch.optim.Optimizer,
    tally: Tally,
) -> None:
    """Take a step of the objective, and count the towers of student and teacher, forward and backward, as parts of it."""
    needs_pixels = not (s.cached and student.image_features_are_frozen)
    side = s.size or student.clip.resolution
    images = torch.empty(s.batch, 3, side, side) if needs_pixels else None
    known = {}
    if s.cached and student.reads_frozen_image_features:
        known["frozen_features"] = torch.empty(s.batch, student.clip.embed_dim)
    if s.cached and teacher:
        known["teacher_features"] = torch.empty(s.batch, teacher.text_features.shape[1])
    _count_as(tally, "text", student, "text_features")
    for name in ("frozen_image_features", "image_features"):
        _count_as(tally, "student image", student, name)
    if teacher:
        _count_as(tally, "teacher image", teacher, "image_features")
    tally.part = "loss"
    labels = () if teacher else (torch.zeros(s.batch, dtype=torch.long),)
    loss, _ = objective(images, *labels, **known)
    optimiser.zero_grad()
    loss.backward()
    with tally.of("optimiser"):
        optimiser.step()


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


def _outline(name: str, precision: str, frozen_precision: str, mode: FakeTensorMode) -> Clip:
    """Return the CLIP of a name with fake tensors for weights."""
    clip = outline_clip(name, precision, frozen_precision)
    with mode:
        for module in clip.model.modules():
            for key, value in module._parameters.items():
                if value is not None:
                    module._parameters[key] = nn.Parameter(torch.empty(value.shape, dtype=value.dtype), requires_grad=False)
            for key, value in module._buffers.items():
                if value is not None:
                    module._buffers[key] = torch.empty(value.shape, dtype=value.dtype)
    return clip


def _embed_dim(clip: Clip) -> int:
    """Width of a teacher's features: asked of its image tower, since its text tower may be of any kind."""
    with torch.no_grad():
        return clip.image_features(clip.model.logit_scale.new_empty(1, 3, clip.resolution, clip.resolution)).shape[1]
