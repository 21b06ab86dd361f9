"""How fast machines are: vendors' figures for GPUs with an assumed efficiency, and rates that a probe measures on this CPU.

`Machine.seconds` prices a counted operation (experiments/cost.py): as many FLOP as it has at the rate of its precision, as
many bytes as it touches at the memory's, or the launch alone, whichever takes longest.
"""

import io
import math
import os
import resource
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.benchmark import Timer

from kdpl.common.messages import did_you_mean
from kdpl.config.choices import ConfigError
from kdpl.experiments.cost import Op

# Assumptions about a machine that PyTorch drives operation by operation; nothing here was measured by us.
MATMUL_EFFICIENCY = 0.6  # of the vendor's dense peak, in large matrix products
MEMORY_EFFICIENCY = 0.75  # of the vendor's bandwidth
LAUNCH = 8e-6  # seconds for which Python and PyTorch are busy with an operation; a GPU works on earlier ones meanwhile
CONTEXT = 0.6e9  # bytes of the CUDA context, libraries and what the allocator holds in reserve
EXCHANGE = 60e-6  # seconds of a collective operation of a few kB
LINK = 10e9  # bytes a second between ranks
IMAGE_SECONDS = 8e-3  # of a core: decode a JPEG of 500 x 375 pixels, crop it, resize it to 224 and flip it

# Dense peaks in TFLOP/s of fp16, with fp32 accumulation and without sparsity, and of fp32, that of the plain units, which
# PyTorch uses by default; bandwidth in GB/s; memory in GB.
GPUS = {
    "h100": (989, 67, 3350, 80),  # SXM5
    "h200": (989, 67, 4800, 141),
    "a100": (312, 19.5, 2039, 80),  # SXM4, 80 GB
    "a100-40gb": (312, 19.5, 1555, 40),
    "l40s": (362, 91.6, 864, 48),
    "l4": (121, 30.3, 300, 24),
    "a10": (125, 31.2, 600, 24),
    "v100": (125, 15.7, 900, 32),  # SXM2
    "t4": (65, 8.1, 320, 16),
    "rtx4090": (165, 82.6, 1008, 24),
    "rtx3090": (71, 35.6, 936, 24),
}
WITHOUT_BF16 = ("v100", "t4")  # compute in bf16 as in fp32


@dataclass(frozen=True)
class Machine:
    """A processor as the calculator sees it.

    Attributes:
        name: what it is called on the command line.
        device_type: "cpu" or "cuda".
        rates: FLOP/s of matrix products, by precision.
        bandwidth: B/s of everything else, by the bytes touched.
        memory: bytes that one process may fill.
        resident: bytes that a process holds before it has any tensor.
        image_seconds: of a core, to load and augment an image.
        basis: where the rates are from.
    """

    name: str
    device_type: str
    rates: Mapping[torch.dtype, float]
    bandwidth: float
    memory: float
    resident: float
    image_seconds: float
    basis: str

    def seconds(self, op: Op) -> float:
        """Return the time of one operation."""
        return max(LAUNCH, op.flops / self.rates[op.dtype] if op.flops else 0.0, op.bytes / self.bandwidth)


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
        cpu = measure_cpu()
        return replace(cpu, memory=memory * 1e9) if memory else cpu
    if name not in GPUS and None in given.values():
        names = [*GPUS, "cpu"]
        missing = ", ".join(flag for flag, value in given.items() if value is None)
        raise ConfigError(
            f"--gpu '{name}' is not one of {', '.join(names)}.{did_you_mean(name, names)} "
            f"For a machine of your own give its figures, too ({missing})."
        )
    half, single, own_bandwidth, own_memory = GPUS.get(name, (0, 0, 0, 0))
    bf16 = single if name in WITHOUT_BF16 else half
    if tflops:
        half, single, bf16 = tflops, tflops / 8, tflops
    peaks = {torch.float16: half, torch.float32: single, torch.bfloat16: bf16}
    return Machine(
        name,
        "cuda",
        {dtype: MATMUL_EFFICIENCY * peak * 1e12 for dtype, peak in peaks.items()},
        MEMORY_EFFICIENCY * (bandwidth or own_bandwidth) * 1e9,
        (memory or own_memory) * 1e9,
        CONTEXT,
        IMAGE_SECONDS,
        "data sheet, efficiency assumed",
    )


def measure_cpu() -> Machine:
    """Measure this CPU with as many threads as PyTorch has now; it takes seconds.

    Matrix products are measured in a layer of 1,024 tokens; everything else in a layer norm of 16 MB, more than caches hold.
    """
    resident, rates = resident_memory(), {}
    for dtype in (torch.float32, torch.bfloat16):
        x, weight = (torch.randn(shape).to(dtype) for shape in ((1024, 512), (2048, 512)))
        rates[dtype] = 2 * x.numel() * len(weight) / _median(partial(F.linear, x, weight))
    x = torch.randn(2**13, 512)
    return Machine(
        "cpu",
        "cpu",
        rates,
        2 * x.nbytes / _median(partial(F.layer_norm, x, (512,))),
        os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        resident,
        _measure_image(),
        f"measured here, {torch.get_num_threads()} threads",
    )


def _measure_image() -> float:
    """Return the seconds that a JPEG of 500 x 375 pixels takes to become 224 x 224 pixels."""
    import torchvision.transforms as T
    from PIL import Image

    coarse = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    crop = T.RandomResizedCrop(224, interpolation=T.InterpolationMode.BICUBIC)
    transform = T.Compose([crop, T.RandomHorizontalFlip(), T.PILToTensor()])
    return _median(lambda: transform(Image.open(file).convert("RGB")))


def _median(call: Callable[[], object]) -> float:
    """Return the median time of a call with as many threads as PyTorch has now."""
    timer = Timer("call()", globals={"call": call}, num_threads=torch.get_num_threads())
    return timer.blocked_autorange(min_run_time=0.3).median


def resident_memory() -> float:
    """Return the most bytes that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
