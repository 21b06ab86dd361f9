"""One trainer of a fork, run for a few steps on the embedded benchmark, in a process of its own in the fork's folder.

    python -m kdpl.forks.trial [--trainer TCP] [--compare] [--prepare FILE]

Without --trainer it lists the fork's trainers. The last line of the output is the result as JSON, behind `RESULT`. The images
are of the first five classes of EmojiMeals, so that a trial takes seconds.
The student is a small CLIP with random weights and the widths that forks count on, so that no weights are downloaded; where
there is no GPU, `.cuda()` and `.half()` do nothing.
"""

import argparse
import importlib
import json
import os
import runpy
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import kdpl
import kdpl.trainers
from kdpl.common.messages import short_reason
from kdpl.distill.pseudo_labels import UnsupportedStepError
from kdpl.forks.report import RESULT
from kdpl.text.templates import template_for

CLASSES, SHOTS = 5, 8  # five batches of eight in an epoch
STUDENT = "ViT-B/16"  # the name under which forks find the small CLIP
SIZES = {"embed": 512, "resolution": 64, "layers": 3, "width": 768, "patch": 16, "w_t": 512, "heads": 8}


def small_clip(folder: Path) -> Path:
    """Write a small CLIP with random weights as OpenAI's state dict, which `clip.load` of every fork reads; return its path."""
    from kdpl.clip.openai import VOCABULARY, openai_clip

    path, s = folder / "small_clip.pt", SIZES
    torch.manual_seed(11)
    model_class = importlib.import_module(f"{openai_clip().__name__}.model").CLIP
    vision = (s["resolution"], s["layers"], s["width"], s["patch"])
    model = model_class(s["embed"], *vision, 77, VOCABULARY, s["w_t"], s["heads"], s["layers"])
    torch.save(model.float().state_dict(), path)
    return path


def stand_in_for_a_gpu() -> None:
    """Where there is no GPU, let code that asks for one, or for half precision, stay where it is."""
    if torch.cuda.is_available():
        return
    Tensor.cuda = nn.Module.cuda = lambda self, *args, **kwargs: self
    Tensor.half = nn.Module.half = lambda self: self
    torch.backends.cuda.enable_flash_sdp(False)  # fused attention has no second derivative on a CPU


def use_small_clip(path: Path) -> None:
    """Let every copy of OpenAI's `clip` in this process find the small one in place of a download."""
    for module in list(sys.modules.values()):
        if hasattr(module, "_download") and hasattr(module, "_MODELS") and hasattr(module, "available_models"):
            module._download = lambda *args, **kwargs: str(path)


def register_benchmark() -> str:
    """Register the first classes of the embedded benchmark as a data set, and return its name.

    The tables of hand-written sentences in this process, by data set, get one for it.
    """
    from dassl.data.datasets import DATASET_REGISTRY

    from kdpl.datasets.base import ClassListDataset
    from kdpl.datasets.emoji.scenes import EmojiMeals

    class EmojiTrial(EmojiMeals):
        def __init__(self, cfg: Any):
            super().__init__(cfg)
            train, val, test = ([d for d in items if d.label < CLASSES] for items in (self.train_x, self.val, self.test))
            ClassListDataset.__init__(self, train, train, val, test)

    DATASET_REGISTRY.register(EmojiTrial)
    name = EmojiTrial.__name__
    for module in list(sys.modules.values()):
        for table, value in list(vars(module).items()) if hasattr(module, "__dict__") else ():
            if "TEMPLATE" in table.upper() and isinstance(value, dict) and "Caltech101" in value:
                value.setdefault(name, template_for(name, "") if isinstance(value["Caltech101"], str) else value["Caltech101"])
    return name


def fork_trainers() -> list[str]:
    """Import the fork's `train.py` and return the names of its own trainers that can be distilled."""
    from dassl.engine import TRAINER_REGISTRY

    from kdpl.trainers.wrapped import can_be_distilled

    sys.argv = ["train.py"]
    importlib.import_module("train")
    importlib.import_module("kdpl.datasets")  # behind the fork's own

    classes = {name: TRAINER_REGISTRY.get(name) for name in TRAINER_REGISTRY.present_names()}
    return [n for n, c in classes.items() if can_be_distilled(c) and not c.__module__.startswith(("dassl.", "kdpl."))]


def configuration(output: str, trainer: str = "") -> Any:
    """Return the fork's configuration for a short run, not frozen, with the first of its own files for the trainer."""
    fork = sys.modules["train"]
    if not hasattr(fork, "extend_cfg"):
        raise ValueError("train.py has no extend_cfg(cfg) to try: run it by hand")
    from dassl.config import get_cfg_default

    cfg = get_cfg_default()
    fork.extend_cfg(cfg)
    kdpl.extend_cfg(cfg)
    files = sorted(Path("configs/trainers").rglob("*.yaml"))
    for file in [f for f in files if trainer.lower() in (f.parent.name.lower(), f.stem.lower())][:1]:
        cfg.merge_from_file(str(file))
    cfg.merge_from_list(
        ["OUTPUT_DIR", output, "SEED", 1, "DATASET.NUM_SHOTS", SHOTS,
         "DATASET.SUBSAMPLE_CLASSES", "base", "TEST.NO_TEST", True,
         "DATALOADER.NUM_WORKERS", 0, "DATALOADER.TRAIN_X.BATCH_SIZE", 8,
         "DATALOADER.TEST.BATCH_SIZE", 8, "INPUT.SIZE", (SIZES["resolution"],) * 2, "INPUT.INTERPOLATION", "bicubic",
         "INPUT.TRANSFORMS", ("random_resized_crop", "random_flip", "normalize"),
         "INPUT.PIXEL_MEAN", [0.48145466, 0.4578275, 0.40821073], "INPUT.PIXEL_STD", [0.26862954, 0.26130258, 0.27577711],
         "OPTIM.NAME", "sgd", "OPTIM.LR", 0.0035, "OPTIM.MAX_EPOCH", 2, "OPTIM.LR_SCHEDULER", "cosine",
         "OPTIM.WARMUP_EPOCH", 1, "OPTIM.WARMUP_TYPE", "constant", "OPTIM.WARMUP_CONS_LR", 1e-5,
         "MODEL.BACKBONE.NAME", STUDENT, "TRAINER.KDPL.TEACHER", "emoji_teacher", "TRAINER.KDPL.PREC", "fp32"]
    )  # fmt: skip
    for _, node in [*nodes(cfg), *nodes(cfg.TRAINER)]:
        if "PREC" in node:
            node.PREC = "fp32"
        for key in [key for key in node if key.startswith("PROMPT_DEPTH")]:
            node[key] = min(node[key], SIZES["layers"])
    return cfg


def nodes(node: Any) -> list[tuple[str, Any]]:
    """Return name and content of the nodes right below one of a configuration."""
    return [(name, below) for name, below in node.items() if hasattr(below, "items")]


def run(args: argparse.Namespace, output: str, result: dict[str, Any]) -> None:
    """Build and train one wrapped trainer; put what came of it into `result`."""
    from dassl.engine import TRAINER_REGISTRY

    from kdpl.trainers import distilled
    from kdpl.trainers.registry import is_ours

    stand_in_for_a_gpu()
    import dassl

    version = getattr(dassl, "__version__", "bundled")
    result |= {"dassl": version, "kdpl": kdpl.__version__, "torch": torch.__version__}
    result["trainers"] = names = fork_trainers()
    result["ours"] = [n for n in names if is_ours(TRAINER_REGISTRY.get(f"KDPL_{n}"))]
    cfg = configuration(output)
    result["mended"] = [f"TRAINER.{n}.{k}" for n, node in nodes(cfg.TRAINER) for k, value in node.items() if value is None]
    if not args.trainer:
        return
    chosen, cfg = args.trainer, configuration(output, args.trainer)
    path = small_clip(Path(output))
    use_small_clip(path)
    cfg.DATASET.NAME = register_benchmark()
    if args.prepare:
        cfg = runpy.run_path(args.prepare, {"cfg": cfg, "trainer": chosen, "clip_file": path})["cfg"]
    if args.set:
        cfg.merge_from_list(args.set)
    fork_class = TRAINER_REGISTRY.get(chosen)
    name, own = f"KDPL_{chosen}", None
    if chosen in result["ours"]:
        own, name = TRAINER_REGISTRY.get(name), f"Wrapped_{chosen}"
        distilled(fork_class, name=name)
    cfg.TRAINER.NAME = name
    cfg.freeze()
    if own is not None and args.compare:
        try:
            result["compared"] = compare(TRAINER_REGISTRY.get(name)(cfg), own, cfg, path)
        except ValueError as error:  # an option of the fork's that KDPL's own refuses
            result["incomparable"] = str(error)
    trainer = TRAINER_REGISTRY.get(name)(cfg)
    learned = {k: p for m in trainer._models.values() for k, p in m.named_parameters() if p.requires_grad}
    before = {k: p.detach().clone() for k, p in learned.items()}
    step, steps = trainer.forward_backward, []
    trainer.forward_backward = lambda batch: steps.append(step(batch)) or steps[-1]
    trainer.train()
    still = [k for k, p in learned.items() if torch.equal(before[k], p)]
    trainer.set_model_mode("eval")
    with torch.no_grad():
        trainer.model_inference(trainer.parse_batch_test(next(iter(trainer.test_loader)))[0])
    result |= {"learned": len(learned), "still": still, "moved": len(learned) - len(still), "steps": len(steps)}


def compare(trainer: Any, own: type, cfg: Any, clip_file: Path) -> dict[str, Any]:
    """Take four steps with a wrapped trainer and KDPL's own, from the same parameters; return the largest differences."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.TRAINER.NAME, cfg.MODEL.BACKBONE.NAME = own.__name__, str(clip_file)
    cfg.OUTPUT_DIR += "/own"
    cfg.freeze()
    ours = own(cfg)
    theirs = dict(trainer._models[next(iter(trainer._models))].named_parameters())
    pairs = [(p, theirs[name]) for name, p in ours.student.learned.named_parameters()]
    with torch.no_grad():
        for p, q in pairs:
            p.copy_(q)
    start = [p.detach().clone() for p, _ in pairs]
    for each in (ours, trainer):
        each.set_model_mode("train")
        each.num_batches = 10**6
        for group in each.optim.param_groups:
            group["lr"] = 0.002
    differences = []
    for i, batch in enumerate(list(ours.train_loader_x)[:4]):
        ours.batch_idx = trainer.batch_idx = i
        mine = ours.forward_backward(batch)
        other = trainer.forward_backward({**batch, "img": ours.images(batch)})
        loss = float(mine.get("loss_total", mine["loss"]))
        differences.append(abs(loss - other["loss"]) / max(1.0, abs(loss)))
    return {
        "loss": max(differences),
        "parameters": max(float((p - q).detach().abs().max()) for p, q in pairs),
        "moved": max(float((p.detach() - s).abs().max()) for (p, _), s in zip(pairs, start, strict=True)),
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m kdpl.forks.trial", description=__doc__.splitlines()[0])
    parser.add_argument("--trainer", default="", help="name of a trainer of the fork (default: list them)")
    parser.add_argument("--compare", action="store_true", help="compare with KDPL's own trainer of that name")
    parser.add_argument(
        "--layers", type=int, default=SIZES["layers"], help="of the small CLIP; TCP's classes enter behind the 8th"
    )
    parser.add_argument("--prepare", default="", help="a Python file that runs before the trainer is built, with `cfg`")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY VALUE", help="settings")
    args = parser.parse_args(argv)
    SIZES["layers"] = args.layers
    sys.path.insert(0, os.getcwd())
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as output:
        try:
            run(args, output, result)
        except UnsupportedStepError as error:
            traceback.print_exc()
            result["refused"] = str(error)
        except Exception as error:  # of the fork's own code, of any kind
            traceback.print_exc()
            result["error"] = short_reason(error)
    print(RESULT + json.dumps(result), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
