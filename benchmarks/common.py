"""What the benchmarks share: CLIPs of real size with random weights, published settings, measuring, and printing."""

import importlib
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
from kdpl.clip.model import Clip
from kdpl.clip.names import OPENAI_MODELS
from kdpl.clip.openai import VOCABULARY, as_clip, openai_clip
from kdpl.config.defaults import extend_cfg
from kdpl.config.merging import merge_file

ROOT = Path(__file__).resolve().parent.parent


def random_clip(name: str, seed: int, device: str = "cpu") -> Clip:
    """Return a frozen fp32 ViT CLIP of the sizes of an OpenAI model and random weights, which cost the same time."""
    a = OPENAI_MODELS[name]
    package = openai_clip()
    torch.manual_seed(seed)
    model = importlib.import_module(f"{package.__name__}.model").CLIP(
        a.embed_dim, a.resolution, a.vision_depth, a.vision_width, a.patch_size, a.context_length, VOCABULARY,
        a.text_width, a.text_width // 64, a.text_depth,
    )  # fmt: skip
    model.float().requires_grad_(False).eval().to(device)
    return as_clip(model, f"random {name}", a)


def published_options(learner: str) -> CfgNode:
    """Return TRAINER.<learner> of the published ViT-B/32 settings."""
    from dassl.config import get_cfg_default

    cfg = get_cfg_default()
    extend_cfg(cfg)
    merge_file(cfg, str(min((ROOT / "configs/trainers" / f"KDPL_{learner}").glob("vit_b32*.yaml"))))
    return cfg.TRAINER[learner.upper()]


def seconds_per_call(times: int, *calls: Callable[[], object]) -> list[float]:
    """Return the median time of each call in seconds, after one that is not counted.

    The calls take turns, so that what else happens on the machine does not favour one of them.
    """
    durations = [[] for _ in calls]
    for _ in range(1 + times):
        for call, own in zip(calls, durations, strict=True):
            start = time.perf_counter()
            call()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            own.append(time.perf_counter() - start)
    return [statistics.median(own[1:]) for own in durations]


def peak_memory() -> float:
    """Return the most memory this process has held so far, in GB: the GPU's where one was used, else the machine's."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / 1e9
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "darwin" else 1)
    return kilobytes * 1024 / 1e9


def in_own_process(script: str, *args: object) -> dict:
    """Run a script, so that its peak memory is its own, and return the JSON object on its last line."""
    command = [sys.executable, script, *map(str, args)]
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
