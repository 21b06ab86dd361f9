"""What the benchmarks share: CLIPs of real size with random weights, published settings, measuring, and printing."""

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from tabulate import tabulate
from yacs.config import CfgNode

import kdpl  # noqa: F401  first, it makes `dassl` importable
from kdpl.clip.loading import build_openai, set_precision
from kdpl.clip.model import Clip
from kdpl.clip.names import Architecture
from kdpl.clip.preprocessing import Preprocessing
from kdpl.clip.weights import openai_clip
from kdpl.config.defaults import extend_cfg, merge_file
from kdpl.students import Student

ROOT = Path(__file__).resolve().parent.parent


# ViTs by name: OpenAI's, the paper's teacher, with heads of 64 as all of OpenAI's, and one for trials of a benchmark itself.
SIZES = {  # embed_dim, resolution, layers, width, patch; context, vocabulary, width, heads, layers
    "ViT-B/32": (512, 224, 12, 768, 32, 77, 49408, 512, 8, 12),
    "ViT-B/16": (512, 224, 12, 768, 16, 77, 49408, 512, 8, 12),
    "ViT-L/14": (768, 224, 24, 1024, 14, 77, 49408, 768, 12, 12),
    "ViT-L/14@336px": (768, 336, 24, 1024, 14, 77, 49408, 768, 12, 12),
    "ViT-H/14": (1024, 224, 32, 1280, 14, 77, 49408, 1024, 16, 24),
    "small": (128, 64, 12, 128, 16, 77, 49408, 128, 2, 12),
}


def architecture(name: str) -> Architecture:
    """Return what `describe` would of one of `SIZES`."""
    return Architecture(Preprocessing((SIZES[name][1],) * 2), SIZES[name][2], SIZES[name][-1])


def random_clip(
    name: str, seed: int, device: str = "cpu", precision: str = "fp32", frozen_precision: str | None = None
) -> Clip:
    """Return a frozen ViT CLIP of one of `SIZES` with random weights, which cost the same time.

    Args:
        precision, frozen_precision: as of `load_clip`.
    """
    torch.manual_seed(seed)
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in openai_clip().model.CLIP(*SIZES[name]).state_dict().items()}
    clip = build_openai(f"random {name}", {key: 0.02 * torch.randn(shape) + ("ln_" in key) for key, shape in shapes.items()})
    set_precision(clip, precision, frozen_precision)
    clip.model.to(device)
    return clip


def published_options(learner: str) -> CfgNode:
    """Return TRAINER.<learner> of the published ViT-B/32 settings."""
    from dassl.config import get_cfg_default

    cfg = get_cfg_default()
    extend_cfg(cfg)
    merge_file(cfg, settings_of(f"KDPL_{learner}"))
    return cfg.TRAINER[Student.known[learner].node]


def settings_of(trainer: str) -> str:
    """Return a trainer's file of settings for ViT-B/32; if it has none, as a new learner may, any other."""
    files = sorted((ROOT / "configs/trainers" / trainer).glob("*.yaml"))
    return str(next((file for file in files if file.stem.startswith("vit_b32")), files[0]))


clock: Callable[[], float] = time.perf_counter  # with --cpu-time `time.process_time`, of all threads together


def now(device: str) -> float:
    """Return the time in seconds, once the device has done all its work."""
    if device != "cpu":
        torch.cuda.synchronize()
    return clock()


def device_seconds(call: Callable[[], object], times: int, device: str, rounds: int = 3) -> float:
    """Return the seconds of a call among `times` calls one behind the other, the median of several rounds.

    On a GPU they are measured by events in its stream, and nothing waits between the calls.
    """
    rounds_s = []
    for _ in range(rounds):
        if device == "cpu":
            start = clock()
            for _ in range(times):
                call()
            rounds_s.append((clock() - start) / times)
            continue
        events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        torch.cuda.synchronize()
        events[0].record()
        for _ in range(times):
            call()
        events[1].record()
        torch.cuda.synchronize()
        rounds_s.append(events[0].elapsed_time(events[1]) / 1e3 / times)
    return statistics.median(rounds_s)


def seconds_per_call(times: int, *calls: Callable[[], object]) -> list[float]:
    """Return the median time of each call in seconds, after one that is not counted.

    The calls take turns, so that what else happens on the machine does not favour one of them.
    """
    durations = [[] for _ in calls]
    for _ in range(1 + times):
        for call, own in zip(calls, durations, strict=True):
            start = clock()
            call()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            own.append(clock() - start)
    return [statistics.median(own[1:]) for own in durations]


def peak_memory() -> float:
    """Return the most memory this process has held so far, in GB: the GPU's where one was used, else the machine's."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / 1e9
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "darwin" else 1)
    return kilobytes * 1024 / 1e9


def in_own_process(script: str | Path, *args: object) -> dict:
    """Run a script, so that its peak memory is its own, and return the JSON object on its last line."""
    command = [sys.executable, str(script), *map(str, args)]
    process = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(process.stdout.splitlines()[-1])


def machine(device: str = "cpu") -> str:
    """Return in words what the figures were measured on."""
    if device != "cpu":
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    model = next((l.split(":")[1].strip() for l in _cpuinfo() if l.startswith("model name")), "a CPU")
    return f"{model}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def print_rows(rows: list[dict], as_json: bool) -> None:
    """Print rows as a table, its headings with spaces for underscores, and as one JSON object on the last line if asked."""
    print(tabulate([{key.replace("_", " "): value for key, value in row.items()} for row in rows], "keys", floatfmt=".3g"))
    if as_json:
        print(json.dumps({"rows": rows}))


def publish_rows(name: str, rows: list[dict], floats: str = "") -> None:
    """Write rows as the table `name` of docs/performance.md."""
    page, begin, end = ROOT / "docs/performance.md", f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
    before, rest = page.read_text(encoding="utf-8").split(begin)
    table = tabulate(rows, "keys", "github", intfmt=",", floatfmt=floats)
    page.write_text(f"{before}{begin}{table}\n{end}{rest.split(end)[1]}", encoding="utf-8")
