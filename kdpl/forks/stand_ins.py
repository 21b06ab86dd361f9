"""What stands in for weights, data and a GPU in a trial of a fork: a small CLIP, some drawings, and calls that do nothing."""

import importlib
import os
import pdb
import sys
from pathlib import Path
from typing import Any

import torch
import torch.utils.collect_env
import yaml
from torch import Tensor, nn

from kdpl.common.files import atomic_write
from kdpl.config.command_line import CONFIGS
from kdpl.text.templates import template_for

CLASSES, LARGEST_BATCH = 5, 8  # as many images of a class as in a batch: five batches in an epoch
STUDENT = "ViT-B/16"  # the name under which forks find the small CLIP
RESOLUTION, EMBED, WIDTH, PATCH, TEXT_WIDTH, HEADS = 64, 512, 768, 16, 512, 8
TRANSFORMS = ("random_resized_crop", "random_flip", "normalize")
OWN_DATA = f"{CONFIGS}/datasets/emoji_meals.yaml"


def small_clip(folder: Path, layers: int) -> Path:
    """Return the path of a small CLIP with random weights as OpenAI's state dict in fp16, which every fork's `clip.load` reads.

    It is written if it is not there: several trials may have one folder.
    """
    from kdpl.clip.openai import VOCABULARY, openai_clip

    package = openai_clip().__name__  # imported also for a file that is there: `use_small_clip` changes what is imported
    path = folder / f"small_clip_{layers}.pt"
    if path.is_file():
        return path
    torch.manual_seed(11)
    model_class = importlib.import_module(f"{package}.model").CLIP
    model = model_class(EMBED, RESOLUTION, layers, WIDTH, PATCH, 77, VOCABULARY, TEXT_WIDTH, HEADS, layers)
    with atomic_write(path) as file:
        torch.save({key: value.to(torch.float16) for key, value in model.state_dict().items()}, file)
    return path


def use_small_clip(path: Path) -> None:
    """Let every copy of OpenAI's `clip` in this process find the small one in place of a download."""
    for module in list(sys.modules.values()):
        if hasattr(module, "_download") and hasattr(module, "_MODELS") and hasattr(module, "available_models"):
            module._download = lambda *args, **kwargs: str(path)


def stand_in_for_a_gpu() -> None:
    """Where there is no GPU, let code that asks for one, or for half precision, stay where it is."""
    if torch.cuda.is_available():
        return
    Tensor.cuda = nn.Module.cuda = lambda self, *args, **kwargs: self
    Tensor.half = nn.Module.half = lambda self: self
    torch.backends.cuda.enable_flash_sdp(False)  # fused attention has no second derivative on a CPU


def pass_over_questions() -> None:
    """Let code that stops for a debugger go on, and what Dassl asks of the machine for its log be left out."""
    pdb.set_trace = pdb.Pdb.set_trace = sys.breakpointhook = lambda *args, **kwargs: None
    torch.utils.collect_env.get_pretty_env_info = lambda: "left out in a trial"


def leave_by_an_exception() -> None:
    """Let `os._exit` end this process as `sys.exit` does, and keep the standard output open: the result is not lost.

    Children end as ever.
    """
    own, leave = os.getpid(), os._exit
    sys.__stdout__.close = sys.__stdout__.flush
    os._exit = lambda status: sys.exit(status) if os.getpid() == own else leave(status)


def data_file() -> str:
    """Return the file in the fork's configs/datasets whose data set is stood in for, or else KDPL's for the benchmark.

    Forks know their data sets by name, in tables of sentences and lists of tasks: a trial takes one of these names.
    """
    files = sorted(Path("configs/datasets").rglob("*.yaml"), key=lambda file: (file.stem != "caltech101", file.name))
    return next((str(file) for file in files if _name_in(file)), OWN_DATA)


def _name_in(file: str | Path) -> str:
    content = yaml.safe_load(Path(file).read_text(encoding="utf-8")) or {}
    return (content.get("DATASET") or {}).get("NAME", "")


def own_data(file: str, root: str) -> tuple[str, list[str]]:
    """Return the name of a file's data set, of which the fork's own class reads `root`, and the names in its classnames.txt."""
    names = Path(root, "classnames.txt")
    return _name_in(file), names.read_text(encoding="utf-8").splitlines() if names.is_file() else []


def register_benchmark(file: str) -> tuple[str, list[str]]:
    """Register the first classes of the embedded benchmark as the data set of a file, and return its name and class names.

    The tables of hand-written sentences in this process, by data set, get one for it.
    """
    from dassl.data.datasets import DATASET_REGISTRY

    from kdpl.datasets.base import ClassListDataset
    from kdpl.datasets.emoji.scenes import EmojiMeals, class_names

    name = _name_in(file)

    class Trial(EmojiMeals):
        def __init__(self, cfg: Any):
            cfg = cfg.clone()
            cfg.defrost()
            cfg.DATASET.ROOT, cfg.DATASET.SOURCE_DOMAINS, cfg.DATASET.TARGET_DOMAINS = "", (), ()
            super().__init__(cfg)
            train, val, test = ([d for d in items or () if d.label < CLASSES] for items in (self.train_x, self.val, self.test))
            ClassListDataset.__init__(self, train, train, val, test)

    Trial.__name__ = Trial.__qualname__ = name
    DATASET_REGISTRY.register(Trial, force=True)
    for module in list(sys.modules.values()):
        for table, value in list(vars(module).items()) if hasattr(module, "__dict__") else ():
            if "TEMPLATE" in table.upper() and isinstance(value, dict) and "Caltech101" in value:
                value.setdefault(name, template_for(name, "") if isinstance(value["Caltech101"], str) else value["Caltech101"])
    return name, list(class_names(EmojiMeals.plan_name))[:CLASSES]
