"""A training step without data: counted on tensors that have no values, or taken and timed on this machine.

The towers are built from their names alone (`outline_clip`), so nothing is downloaded, and the step is that of the objective
that trains. Tensors without values take the way that a card's take.
"""

import resource
import sys
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from yacs.config import CfgNode

from kdpl.clip.loading import describe, outline_clip
from kdpl.clip.model import Clip, effective_precision
from kdpl.config.keys import ConfigError, is_distilled
from kdpl.config.teachers import teacher_names
from kdpl.distill.objective import CrossEntropy, Distillation
from kdpl.distill.teacher import Teacher
from kdpl.students import Student

PARTS = ("teacher image", "student image", "text", "loss", "optimiser")
BYTES, LAUNCHES = "bytes", "launches"
# PyTorch's own formulas, which lack the names that attention has on a CPU.
_ATTENTION = "_scaled_dot_product_flash_attention"
_FORMULAS = flop_registry | {
    getattr(torch.ops.aten, f"{_ATTENTION}_for_cpu{way}"): flop_registry[getattr(torch.ops.aten, _ATTENTION + way)]
    for way in ("", "_backward")
}


class Tally(TorchDispatchMode):
    """Counts what runs inside it.

    Attributes:
        part: the part of the step that runs, one of PARTS.
        counts: by part, and by precision the FLOP of matrix products, BYTES read and written by all else, and LAUNCHES.
        alive, peak: bytes in memory of what was made inside it, now and at most.
    """

    def __init__(self):
        super().__init__()
        self.part, self.alive, self.peak = "loss", 0, 0
        self.counts: Counter[tuple[str, torch.dtype | str]] = Counter()

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
        storages = {s._cdata: s for s in map(Tensor.untyped_storage, outputs) if s._cdata not in old}
        if storages or (outputs and func._schema.is_mutable):  # else a view, which costs nothing
            self.counts[self.part, LAUNCHES] += 1
            if formula := _FORMULAS.get(func.overloadpacket):
                self.counts[self.part, outputs[0].dtype] += formula(*args, **kwargs, out_val=result)
            else:
                self.counts[self.part, BYTES] += size_of([*inputs, *outputs])
        for storage in storages.values():
            self._grow(storage.nbytes())
            weakref.finalize(storage, self._grow, -storage.nbytes())
        return result

    def _grow(self, size: int) -> None:
        self.alive += size
        self.peak = max(self.peak, self.alive)

    def flops(self, part: str = "") -> int:
        """Return the FLOP of a part, of all by default."""
        return sum(n for (of, what), n in self.counts.items() if isinstance(what, torch.dtype) and part in ("", of))

    def counting(self, part: str, method: Callable) -> Callable:
        """Return a method that is counted, with the gradient of the tensor that it returns, as a part of the step."""

        def counted(*args: Any, **kwargs: Any) -> Any:
            previous, self.part = self.part, part
            result = method(*args, **kwargs)
            self.part = previous
            if isinstance(result, Tensor) and result.requires_grad:  # autograd finishes a tower before it begins an earlier one
                result.register_hook(lambda gradient: setattr(self, "part", part))
            return result

        return counted


def size_of(tensors: Iterable[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


class Step:
    """One rank's training step, with random weights and images. Calling it takes the step.

    Args:
        cfg: of the run: trainer, both CLIPs, their precisions and MAX_TEXT_ROWS.
        names: class names that the rank encodes.
        batch: its images.
        cached: the features of frozen towers are known.
        device: to compute on; None: nowhere, tensors have no values, and PREC means what it does on a card.
        room: bytes that the weights may fill there.

    Attributes:
        needs_pixels: False: all features that the step needs are known.
        sizes: bytes of weights and learned parameters, by whose they are.

    Raises:
        ModelNameError, WeightsError, ValueError: an unknown CLIP, one that the learner cannot take, a teacher with prompts, or
            too little room.
    """

    def __init__(
        self, cfg: CfgNode, names: Sequence[str], batch: int, cached: bool = False,
        device: torch.device | None = None, room: float = float("inf"),
    ):  # fmt: skip
        learner = Student.known[cfg.TRAINER.NAME.removeprefix("KDPL_")]
        clip, teachers = _outlines(cfg, learner.node, device.type if device else "cuda")
        weights = [sum(size_of(each.model.parameters()) for each in some) for some in ([clip], teachers)]
        if device and sum(weights) > room:
            raise ConfigError(
                f"A step cannot be timed here: the models alone take {sum(weights) / 1e9:.1f} GB, there are {room / 1e9:.1f}. "
                "Name a machine of a data sheet with --gpu, or smaller models."
            )
        self.device, self.mode = device, device or FakeTensorMode(allow_non_fake_inputs=True)
        widths = [describe(each.name).embed_dim for each in (clip, *teachers)]
        with self.mode:
            for outlined in (clip, *teachers):
                outlined.model.to_empty(device=device or "cpu")
                for parameter in outlined.model.parameters():
                    torch.nn.init.normal_(parameter, std=0.02)
                for buffer in outlined.model.buffers():
                    buffer.fill_(1)
            self.student = student = learner(clip, cfg.TRAINER[learner.node], names)
            (own, *known), (texts, *taught) = ([torch.randn(n, width) for width in widths] for n in (batch, len(names)))
            labels = torch.zeros(batch, dtype=torch.long)
        student.frozen_text_features = lambda names, templates=(): texts  # from a cache
        self.known: dict[str, Any] = {"frozen_features": own} if cached and student.reads_frozen_image_features else {}
        like = (names, "{}", clip.mean, clip.std)
        self.teachers = [Teacher(t, *like, text_features=text) for t, text in zip(teachers, taught, strict=True)]
        if teachers:
            self.objective: CrossEntropy | Distillation = Distillation(student, self.teachers, names)
            self.known |= {"teacher_features": known if len(known) > 1 else known[0]} if cached else {}
        else:
            self.objective, self.known["labels"] = CrossEntropy(student, names), labels
        self.needs_pixels = not (cached and student.image_features_are_frozen)
        self.images = (batch, 3, clip.resolution, clip.resolution)
        learned = list(student.learned.parameters())
        self.optimiser = torch.optim.SGD(learned, lr=0.1, momentum=0.9, weight_decay=5e-4)
        self.sizes = dict(zip(("student", "teacher", "prompts"), (*weights, size_of(learned)), strict=True))

    def __call__(self) -> None:
        with self.mode:
            images = torch.randn(self.images) if self.needs_pixels else None
            loss, _ = self.objective(images, **self.known)
            self.optimiser.zero_grad()
            loss.backward()
            self.optimiser.step()

    def count(self) -> Tally:
        """Take a step and return its counts."""
        tally, student = Tally(), self.student
        for teacher in self.teachers:
            teacher.image_features = tally.counting("teacher image", teacher.image_features)
        student.frozen_image_features = tally.counting("student image", student.frozen_image_features)
        student.image_features = tally.counting("student image", student.image_features)
        student.text_features = tally.counting("text", student.text_features)
        self.optimiser.step = tally.counting("optimiser", self.optimiser.step)
        with tally:
            self()
        return tally

    def time(self) -> tuple[float, float]:
        """Take two steps; return the seconds of the second and the bytes at the peak, of the process or the GPU."""
        self()
        began = self._now()
        self()
        seconds = self._now() - began
        if self.device.type == "cuda":
            return seconds, torch.cuda.max_memory_reserved(self.device)
        return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def _outlines(cfg: CfgNode, node: str, device_type: str) -> tuple[Clip, list[Clip]]:
    """Return the student's CLIP and the teachers' in the precisions of a run, without weights."""
    options, distilled = cfg.TRAINER.KDPL, is_distilled(cfg.TRAINER.NAME)
    if distilled and options.TEACHER_PROMPTS:
        raise ConfigError(
            f"TRAINER.KDPL.TEACHER_PROMPTS '{options.TEACHER_PROMPTS}': a teacher with learned prompts is not counted. "
            "Leave it out: a few more tokens in each pass are what it costs."
        )
    precisions = (effective_precision(cfg.TRAINER[node].PREC, device_type, frozen) for frozen in (False, True))
    clip = outline_clip(cfg.MODEL.BACKBONE.NAME, *precisions)
    clip.bound_text(options.MAX_TEXT_ROWS)
    frozen = effective_precision(options.PREC, device_type, frozen=True)
    return clip, [outline_clip(name, frozen) for name in (teacher_names(options.TEACHER) if distilled else [])]
