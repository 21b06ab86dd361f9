"""One trainer of a fork, run by the fork's own main() for a few steps on drawings, in its own process.

    python -m kdpl.forks.trial [--trainer TCP] [--labels] [--layers N] [--prepare FILE] [--root FOLDER] [--set KEY VALUE ...]

Without --trainer it lists the fork's trainers. The fork's `train.py` runs with the lines of `kdpl.install`, if it lacks them in
memory only, and with a small CLIP of random weights and the widths that forks count on, so that nothing is downloaded. The last
line of the output is the result as JSON, behind `RESULT`.
"""

import argparse
import json
import linecache
import os
import runpy
import sys
import tempfile
import traceback
import types
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import kdpl
import kdpl.trainers
from kdpl.common.command import run_command
from kdpl.common.messages import short_reason
from kdpl.config.command_line import CONFIGS
from kdpl.distill.interception import ReplacedCrossEntropy
from kdpl.distill.pseudo_labels import UnsupportedStepError
from kdpl.forks.edit import apply_changes, missing_changes, read_source
from kdpl.forks.stand_ins import (
    LARGEST_BATCH,
    RESOLUTION,
    STUDENT,
    TRANSFORMS,
    data_file,
    leave_by_an_exception,
    own_data,
    pass_over_questions,
    register_benchmark,
    small_clip,
    stand_in_for_a_gpu,
    use_small_clip,
)
from kdpl.forks.start import RESULT
from kdpl.trainers.offers import OF_THE_FORK, PREFIX, can_be_distilled
from kdpl.trainers.wrapped import DistilledTrainer


def run_script(name: str) -> types.ModuleType:
    """Run the fork's `train.py`, with the lines of `kdpl.install`, as a module of this name; "__main__" runs its main()."""
    path = Path("train.py").resolve()
    source = read_source(path)
    changed = apply_changes(source, missing_changes(source, str(path)))
    module = sys.modules[name] = types.ModuleType(name)
    module.__file__ = str(path)
    linecache.cache[str(path)] = len(changed), None, changed.splitlines(keepends=True), str(path)  # for tracebacks
    exec(compile(changed, str(path), "exec", dont_inherit=True), vars(module))
    return module


def fork_trainers() -> dict[str, str]:
    """Return the fork's trainers that can be distilled, each with the name under which it is offered without labels."""
    from dassl.engine import TRAINER_REGISTRY

    names = TRAINER_REGISTRY.registered_names()
    classes = {name: TRAINER_REGISTRY.get(name) for name in names}
    theirs = [n for n, c in classes.items() if can_be_distilled(c) and not c.__module__.startswith(("dassl.", "kdpl."))]
    return {n: next(o for o in (f"{OF_THE_FORK}{n}", f"{PREFIX}{n}") if o in names) for n in theirs}


def config_file(trainer: str) -> str:
    """Return the first of the fork's files for a trainer; else KDPL's own for the small benchmark."""
    files = sorted(Path("configs/trainers").rglob("*.yaml"))
    own = [f for f in files if trainer.lower() in (f.stem.lower(), *map(str.lower, f.parent.parts))]
    related = [f for f in files if f.parent.name.lower() in trainer.lower()]  # CoOp_sub has those of CoOp
    related.sort(key=lambda f: -len(f.parent.name))
    return str([*own, *related, f"{CONFIGS}/trainers/KDPL_CoOp/emoji.yaml"][0])


def configuration(script: Any, file: str) -> Any:
    """Return the fork's configuration with a file of it merged, as far as that can be done without its main()."""
    from dassl.config import get_cfg_default

    cfg = get_cfg_default()
    if hasattr(script, "extend_cfg"):
        script.extend_cfg(cfg)
    else:  # its nodes are made where this does not reach: let files bring them
        cfg.set_new_allowed(True)
    kdpl.extend_cfg(cfg)
    if file:
        cfg.merge_from_file(file)
    return cfg


def short_run(cfg: Any, layers: int, labels: bool) -> list[Any]:
    """Return the settings, for the command line, of a run of some ten steps with the small CLIP.

    Batches are as small as in the fork's file: models with prompts for each image may take one image at a time.
    """
    batch = min(LARGEST_BATCH, cfg.DATALOADER.TRAIN_X.BATCH_SIZE)
    settings = [
        "DATASET.NUM_SHOTS", batch, "DATASET.SUBSAMPLE_CLASSES", "base", "TEST.NO_TEST", False,
        "DATALOADER.NUM_WORKERS", 0, "DATALOADER.TRAIN_X.BATCH_SIZE", batch, "DATALOADER.TEST.BATCH_SIZE", batch,
        "INPUT.SIZE", (RESOLUTION, RESOLUTION), "INPUT.INTERPOLATION", "bicubic",
        "INPUT.PIXEL_MEAN", [0.48145466, 0.4578275, 0.40821073], "INPUT.PIXEL_STD", [0.26862954, 0.26130258, 0.27577711],
        "OPTIM.NAME", "sgd", "OPTIM.LR", 0.0035, "OPTIM.MAX_EPOCH", 2, "OPTIM.LR_SCHEDULER", "cosine",
        "OPTIM.WARMUP_EPOCH", -1 if labels else 1, "OPTIM.WARMUP_TYPE", "constant", "OPTIM.WARMUP_CONS_LR", 1e-5,
        "MODEL.BACKBONE.NAME", STUDENT, "TRAINER.KDPL.TEACHER", "emoji_teacher", "TRAINER.KDPL.PREC", "fp32",
    ]  # fmt: skip
    if "normalize" in cfg.INPUT.TRANSFORMS:  # else the run is to say what the command needs
        settings += ["INPUT.TRANSFORMS", TRANSFORMS]
    for path, node in [*nodes(cfg, ""), *nodes(cfg.TRAINER, "TRAINER.")]:
        settings += [f"{path}.PREC", "fp32"] if "PREC" in node else []
        depths = [key for key, value in node.items() if key.startswith("PROMPT_DEPTH") and isinstance(value, int)]
        settings += [x for key in depths for x in (f"{path}.{key}", min(node[key], layers))]
    return settings


def nodes(node: Any, above: str) -> list[tuple[str, Any]]:
    """Return path and content of the nodes right below one of a configuration."""
    return [(f"{above}{name}", below) for name, below in node.items() if hasattr(below, "items")]


def run(args: argparse.Namespace, output: str, result: dict[str, Any]) -> None:
    """List the fork's trainers, or let its main() build and train one of them; put what came of it into `result`."""
    stand_in_for_a_gpu()
    pass_over_questions()
    leave_by_an_exception()
    import dassl

    version = getattr(dassl, "__version__", "bundled")
    result |= {"dassl": version, "kdpl": kdpl.__version__, "torch": torch.__version__}
    sys.argv = ["train.py"]
    script = run_script("train")
    result["trainers"] = offered = fork_trainers()
    cfg = configuration(script, "")
    result["mended"] = [f"{path}.{k}" for path, node in nodes(cfg.TRAINER, "TRAINER.") for k, v in node.items() if v is None]
    if not args.trainer:
        return
    if args.trainer not in offered:
        raise ValueError(f"{args.trainer} is not a trainer of this fork that can be distilled: {', '.join(offered)}")
    file, data = config_file(args.trainer), data_file()
    clip_file = small_clip(Path(args.clips or output), args.layers)
    use_small_clip(clip_file)
    dataset, classnames = own_data(data, args.root) if args.root else register_benchmark(data)
    facts = {"dataset": dataset, "classnames": classnames, "trainer": args.trainer, "clip_file": clip_file, "result": result}
    for prepared in args.prepare:
        runpy.run_path(prepared, facts)
    name = args.trainer if args.labels else offered[args.trainer]
    settings = [*short_run(configuration(script, file), args.layers, args.labels), *args.set]
    sys.argv = ["train.py", "--trainer", name, "--seed", "1", "--output-dir", output, "--config-file", file,
                "--dataset-config-file", data, *(["--root", args.root] if args.root else []), *map(str, settings)]  # fmt: skip
    result |= {"config_file": file, "data_file": data, "layers": str(args.layers)}
    if not args.labels:
        watch(result)
    try:
        run_script("__main__")
    except SystemExit as end:
        if end.code not in (None, 0):
            raise
    if args.labels:
        result["ran"] = True
    elif "moved" not in result:
        raise ValueError(f"the fork's main() ended without training {name}")


def watch(result: dict[str, Any]) -> None:
    """Put into `result` what the trainer that the fork's main() builds learns, and how exactly its loss is the divergence."""
    train, answer = DistilledTrainer.train, ReplacedCrossEntropy._loss

    def trained(self: Any, *args: Any, **kwargs: Any) -> Any:
        learned = {k: p for m in self._models.values() if m is not None for k, p in m.named_parameters() if p.requires_grad}
        before = {k: p.detach().clone() for k, p in learned.items()}
        step, steps = self.forward_backward, []

        def counted(batch: Any) -> Any:
            steps.append(step(batch))
            return steps[-1]

        def record() -> None:
            still = [k for k, p in learned.items() if torch.equal(before[k], p)]
            result.update(learned=len(learned), still=still, moved=len(learned) - len(still), steps=len(steps))

        self.forward_backward = counted
        try:
            returned = train(self, *args, **kwargs)
        except SystemExit as end:  # some leave Python in the test that ends a training
            if end.code in (None, 0):
                record()
            raise
        record()
        return returned

    def answered(self: Any, name: str, input: Any, target: Any, *args: Any, **kwargs: Any) -> Any:
        loss = answer(self, name, input, target, *args, **kwargs)
        if "loss_differs" not in result and input.requires_grad and loss.dim() == 0:
            result.update(differences(loss, input, self.teacher_logits[target.rows], self.calls))
        return loss

    DistilledTrainer.train, ReplacedCrossEntropy._loss = trained, answered


def divergence(logits: Tensor, teacher: Tensor) -> Tensor:
    """Return KDPL's loss of each row in double precision, as the paper has it."""
    log_s, log_t = logits.double().log_softmax(1), teacher.detach().double().log_softmax(1)
    return 0.5 * (log_t.exp() * (log_t - log_s) + log_s.exp() * (log_s - log_t)).sum(1)  # (rows,)


def differences(loss: Tensor, input: Tensor, teacher: Tensor, calls: Any) -> dict[str, float]:
    """Compare a mean of the loss and its gradient with those of the formula."""
    if next(reversed(calls))[2] != "mean":
        return {}
    (gradient,) = torch.autograd.grad(loss, input, retain_graph=True)
    s = input.detach().double().requires_grad_()
    expected = divergence(s, teacher).mean()
    (exact,) = torch.autograd.grad(expected, s)
    return {"loss_differs": float((loss - expected).abs()), "gradient_differs": float((gradient - exact).abs().max())}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m kdpl.forks.trial", description=__doc__.splitlines()[0])
    parser.add_argument("--trainer", default="", help="name of a trainer of the fork (default: list them)")
    parser.add_argument("--labels", action="store_true", help="run it with its labels, as the fork does")
    parser.add_argument("--root", default="", help="folder with the data set's own files, in place of drawings")
    parser.add_argument("--clips", default="", help="folder that keeps the small CLIPs for other trials")
    parser.add_argument("--layers", type=int, default=3, help="of the small CLIP; some trainers act on the last of 12")
    parser.add_argument("--prepare", action="append", default=[], help="a Python file that runs before the fork's main()")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY VALUE", help="settings")
    args = parser.parse_args(argv)
    sys.path.insert(0, os.getcwd())
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as output:
        try:
            run(args, output, result)
        except UnsupportedStepError as error:
            traceback.print_exc()
            result["refused"] = str(error)
        except (Exception, SystemExit) as error:  # of the fork's own code, of any kind
            traceback.print_exc()
            result["error"] = short_reason(error)
    sys.__stdout__.write(f"{RESULT}{json.dumps(result)}\n")
    sys.__stdout__.flush()
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
