"""How fast machines are: vendors' figures for GPUs with an assumed efficiency, and rates that a probe measures on this CPU.

`Machine.seconds` prices a counted operation (experiments/cost.py): as many FLOP as it has at the rate of its kind, or as many
bytes as it touches at the memory's, whichever takes longer.
"""

import io
import math
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kdpl.clip.precision import cpu_has_bf16
from kdpl.common.messages import did_you_mean
from kdpl.config.choices import ConfigError
from kdpl.experiments.cost import Op

# Assumptions about a GPU that PyTorch drives operation by operation; nothing here was measured by us.
MATMUL_EFFICIENCY = 0.6  # of the vendor's dense peak, in large matrix products
ATTENTION_EFFICIENCY = 0.3  # of the same, in fused attention with heads of 64
MEMORY_EFFICIENCY = 0.75  # of the vendor's bandwidth
LAUNCH = 8e-6  # seconds for which Python and PyTorch are busy with an operation; the GPU works on earlier ones meanwhile
CONTEXT = 0.6e9  # bytes of the CUDA context, libraries and what the allocator holds in reserve
EXCHANGE = 60e-6  # seconds of a collective operation of a few kB
LINK = 10e9  # bytes a second between ranks
IMAGE_SECONDS = 8e-3  # of a core: decode a JPEG of 500 x 375 pixels, crop it, resize it to 224 and flip it

Curve = Sequence[tuple[float, float]]  # (size, rate), by growing size


@dataclass(frozen=True)
class Machine:
    """A processor as the calculator sees it.

    Attributes:
        name: what it is called on the command line.
        rates: rate by kind of operation: FLOP/s by the rows of the product, "matmul fp32", "attention fp16", "attention
            backward bf16", or B/s by the bytes touched, "move" and "math".
        memory: bytes that one process may fill.
        launch: seconds of an operation that are lost to calling it, whatever its size.
        waits: whether the caller waits for an operation (a CPU), or runs ahead (a GPU).
        resident: bytes that a process holds before it has any tensor.
        image_seconds: of a core, to load and augment an image.
        basis: where the rates are from.
    """

    name: str
    rates: Mapping[str, Curve]
    memory: float
    launch: float
    waits: bool
    resident: float
    image_seconds: float
    basis: str

    @property
    def device_type(self) -> str:
        return "cpu" if self.waits else "cuda"

    def seconds(self, op: Op) -> float:
        """Return the time of one operation."""
        moved = op.bytes / interpolate(self.rates["math" if op.kind == "math" else "move"], op.bytes)
        computed = op.flops / interpolate(self.rates[f"{op.kind} {_PRECISION[op.dtype]}"], op.rows) if op.flops else 0.0
        if self.waits:  # what is measured of a product holds its memory traffic
            return self.launch + (computed or moved)
        return max(self.launch, computed, moved)


_PRECISION = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
_KINDS = ("matmul", "attention", "attention backward")


def interpolate(curve: Curve, size: float) -> float:
    """Return the rate at a size: between two measured ones on a line in the logarithms, outside them the nearest."""
    sizes, rates = zip(*curve, strict=True)
    return math.exp(np.interp(math.log(max(size, 1e-9)), np.log(sizes), np.log(rates)))


def gpu(name: str, tflops: Mapping[str, float], bandwidth: float, memory: float) -> Machine:
    """Return a GPU from its data sheet.

    Args:
        tflops: dense peak by precision, fp32 and fp16, and bf16 where it has it, in TFLOP/s.
        bandwidth: in GB/s.
        memory: in GB.
    """
    peak = {"bf16": tflops["fp32"], **tflops}  # without units for bf16 it computes as in fp32
    share = {"matmul": MATMUL_EFFICIENCY, "attention": ATTENTION_EFFICIENCY, "attention backward": ATTENTION_EFFICIENCY}
    rates = {f"{kind} {p}": [(1, share[kind] * peak[p] * 1e12)] for kind in _KINDS for p in peak}
    rates |= {kind: [(1, MEMORY_EFFICIENCY * bandwidth * 1e9)] for kind in ("move", "math")}
    return Machine(name, rates, memory * 1e9, LAUNCH, False, CONTEXT, IMAGE_SECONDS, "data sheet, efficiency assumed")


def _sheet(fp16: float, fp32: float, bandwidth: float, memory: float, bf16: bool = True) -> tuple:
    return {"fp16": fp16, "fp32": fp32} | ({"bf16": fp16} if bf16 else {}), bandwidth, memory


# Dense peaks with fp32 accumulation, without sparsity; fp32 is that of the plain units, which PyTorch uses by default.
GPUS = {
    "h100": _sheet(989, 67, 3350, 80),  # SXM5
    "h200": _sheet(989, 67, 4800, 141),
    "a100": _sheet(312, 19.5, 2039, 80),  # SXM4, 80 GB
    "a100-40gb": _sheet(312, 19.5, 1555, 40),
    "l40s": _sheet(362, 91.6, 864, 48),
    "l4": _sheet(121, 30.3, 300, 24),
    "a10": _sheet(125, 31.2, 600, 24),
    "v100": _sheet(125, 15.7, 900, 32, bf16=False),  # SXM2
    "t4": _sheet(65, 8.1, 320, 16, bf16=False),
    "rtx4090": _sheet(165, 82.6, 1008, 24),
    "rtx3090": _sheet(71, 35.6, 936, 24),
}


def find_machine(
    name: str, tflops: float | None = None, bandwidth: float | None = None, memory: float | None = None
) -> Machine:
    """Return a machine by its name; given figures replace its own.

    Args:
        name: one of `GPUS`, "cpu", which is measured now, or any other name with all three figures.
        tflops: dense peak in half precision; fp32 is taken for an eighth of it.
        bandwidth, memory: in GB/s and GB.

    Raises:
        ConfigError: the name is unknown and a figure is missing, or a figure is not positive.
    """
    given = {"--tflops": tflops, "--bandwidth": bandwidth, "--memory": memory}
    for flag, value in given.items():
        if value is not None and not 0 < value < math.inf:
            raise ConfigError(f"{flag} is {value}, expected a positive number.")
    if name == "cpu":
        if tflops or bandwidth:
            raise ConfigError("--gpu cpu is measured: --tflops and --bandwidth are for GPUs. Leave them out.")
        cpu = measure_cpu(("fp32", "bf16") if cpu_has_bf16() else ("fp32",))
        return replace(cpu, memory=memory * 1e9) if memory else cpu
    if name not in GPUS and None in given.values():
        names = [*GPUS, "cpu"]
        missing = ", ".join(flag for flag, value in given.items() if value is None)
        raise ConfigError(
            f"--gpu '{name}' is not one of {', '.join(names)}.{did_you_mean(name, names)} "
            f"For a machine of your own give its figures, too ({missing})."
        )
    peaks, own_bandwidth, own_memory = GPUS.get(name, ({}, 0, 0))
    if tflops:
        peaks = {"fp16": tflops, "bf16": tflops, "fp32": tflops / 8}
    return gpu(name, peaks, bandwidth or own_bandwidth, memory or own_memory)


def measure_cpu(precisions: Sequence[str] = ("fp32",), repeat: int = 5) -> Machine:
    """Measure this CPU with as many threads as PyTorch has now; it takes seconds.

    Args:
        precisions: fp32, bf16: those that matrix products are measured in.
        repeat: how often each thing is measured; the median counts.
    """
    generator, resident = torch.Generator().manual_seed(0), resident_memory()

    def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    rates: dict[str, Curve] = {}
    for precision in precisions:
        dtype = next(d for d, name in _PRECISION.items() if name == precision)
        rates |= _measure_products(precision, dtype, random, repeat)
    rates["move"], rates["math"] = [], []
    for count in (2**10, 2**14, 2**18, 2**22, 2**24):
        a, b = random(count // 512, 512), random(count // 512, 512)
        calls = max(1, 2**20 // count)
        add = _median(partial(torch.add, a, b), repeat, calls)
        norm = _median(partial(F.layer_norm, a, (512,)), repeat, calls)
        gate = _median(partial(F.silu, a), repeat, calls)
        rates["move"].append((12 * a.numel(), 12 * a.numel() / add))
        rates["math"].append((8 * a.numel(), 16 * a.numel() / (norm + gate)))
    return Machine(
        "cpu",
        rates,
        os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        _median(a[:0].neg, repeat, 1000),
        True,
        resident,
        _measure_image(repeat),
        f"measured here, {torch.get_num_threads()} threads",
    )


def _measure_products(precision: str, dtype: torch.dtype, random: Callable[..., Tensor], repeat: int) -> dict[str, Curve]:
    """Measure linear layers on few and on many rows, and attention of short and long sequences."""
    weights = [random(2048, 512, dtype=dtype) for _ in range(12)]  # a tower's: together more than a cache holds
    products = []
    for rows in (1, 8, 64, 512, 4096):
        x, some = random(rows, 512, dtype=dtype), weights[: 12 if rows < 512 else 2]
        seconds = _median(partial(_linear_layers, x, some), repeat, 1)
        products.append((rows, len(some) * 2 * rows * 512 * 2048 / seconds))
    forward, backward = [], []
    for batch, queries, keys in ((200, 2, 7), (200, 5, 10), (8, 50, 50), (4, 197, 197)):
        q, k, v = (random(batch, 8, n, 64, dtype=dtype).requires_grad_() for n in (queries, keys, keys))
        product = 2 * batch * 8 * queries * keys * 64
        both = _median(partial(_attention_and_gradient, q, k, v, torch.ones_like(q)), repeat, 3)
        with torch.no_grad():
            alone = _median(partial(F.scaled_dot_product_attention, q, k, v), repeat, 3)
        forward.append((queries, 2 * product / alone))
        backward.append((queries, 5 * product / max(both - alone, alone)))
    kinds = zip(_KINDS, (products, forward, backward), strict=True)
    return {f"{kind} {precision}": curve for kind, curve in kinds}


def _linear_layers(x: Tensor, weights: Sequence[Tensor]) -> None:
    for weight in weights:
        F.linear(x, weight)


def _attention_and_gradient(q: Tensor, k: Tensor, v: Tensor, gradient: Tensor) -> None:
    torch.autograd.grad(F.scaled_dot_product_attention(q, k, v), (q, k, v), gradient)


def _measure_image(repeat: int) -> float:
    """Return the seconds that a JPEG of 500 x 375 pixels takes to become 224 x 224 pixels."""
    import torchvision.transforms as T
    from PIL import Image

    coarse = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    transform = T.Compose(
        [T.RandomResizedCrop(224, interpolation=T.InterpolationMode.BICUBIC), T.RandomHorizontalFlip(), T.PILToTensor()]
    )
    return _median(lambda: transform(Image.open(file).convert("RGB")), repeat, 3)


def _median(call: Callable[[], object], repeat: int, calls: int) -> float:
    """Return the median time of a call, after one that does not count; each measurement is of `calls` in a row."""
    call()
    durations = []
    for _ in range(repeat):
        start = time.perf_counter()
        for _ in range(calls):
            call()
        durations.append((time.perf_counter() - start) / calls)
    return statistics.median(durations)


def resident_memory() -> float:
    """Return the most bytes that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
