"""Run the trainers of public forks without labels, and write their rows into docs/forks_runs.md.

    python tests/forks/run.py FORK [FORK ...] [--dassl FOLDER] [--only NAME ...] [--flags ...] [--page FILE]

FORK is the folder of a fork's `train.py`, in a Git checkout; nothing in it is changed. Each trainer runs by the fork's own
main() with the lines of `kdpl.install`, in a process of its own, for a few steps: with a CLIP of the kind and size that the
fork's configuration asks for, of random weights, on drawings that lie on disk as Caltech101, read by the fork's own data set
class. A second run has the labels of the training images permuted in the split file: what is learned must be the same bit for
bit. Loss and gradients of the first step are compared with a computation of their own in double precision (`formula`).
"""

import argparse
import functools
import hashlib
import importlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import traceback
import types
from pathlib import Path
from typing import Any

HEAD = "| fork | commit | Dassl | trainer | settings | without labels | truth permuted | loss, gradients by formula |\n"
RULE = "| --- | --- | --- | --- | --- | --- | --- | --- |\n"
RESULT = "RESULT "
ROOT = Path(__file__).resolve().parents[2]
NAMES = ("accordion", "airplane", "anchor", "ant", "barrel", "bass", "beaver", "binocular", "bonsai", "brain")  # of Caltech101
IMAGES = {"train": 2, "val": 1, "test": 1}  # a class
BATCH, STEPS, SECONDS, EXACT = 2, 2, 1800, 1e-6
TRAINS = {"train", "run_epoch", "forward_backward"}  # of a trainer that learns


def write_data(folder: Path, permute: bool) -> Path:
    """Write drawings under the names of ten classes of Caltech101 as its files and its split file lie on disk.

    Args:
        folder: receives them.
        permute: give the labels of the training images to others, as many of each class, within the base classes and the new.
    """
    from kdpl.common.files import cache_dir
    from kdpl.datasets.emoji.scenes import EmojiMeals, scene_folder

    drawings = sorted(scene_folder(cache_dir(), EmojiMeals.plan_name).rglob("*.png"))
    data, split = folder / "caltech-101", {}
    for part, count in IMAGES.items():
        split[part] = []
        for label, name in enumerate(NAMES):
            for number in range(count):
                image = f"{name}/{part}_{number}.png"
                path = data / "101_ObjectCategories" / image
                path.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(drawings.pop(), path)
                split[part].append([image, label, name])
    if permute:
        half, labels = len(split["train"]) // 2, [row[1] for row in split["train"]]
        shuffled = [*random.Random(1).sample(labels[:half], half), *random.Random(2).sample(labels[half:], half)]
        split["train"] = [[image, new, NAMES[new]] for (image, *_), new in zip(split["train"], shuffled, strict=True)]
    (data / "split_zhou_Caltech101.json").write_text(json.dumps(split), encoding="utf-8")
    return folder


# ------------------------------------------------------------------------------------------------- in the fork's process


def stand_in(weights: Path) -> None:
    """Let code that asks for a GPU stay where it is, and every copy of OpenAI's `clip` find random weights."""
    import pdb

    import torch
    import torch.utils.collect_env
    from torch import Tensor, nn

    pdb.set_trace = pdb.Pdb.set_trace = sys.breakpointhook = lambda *args, **kwargs: None
    torch.utils.collect_env.get_pretty_env_info = lambda: "left out"
    left, leave = os.getpid(), os._exit
    os._exit = lambda status: sys.exit(status) if os.getpid() == left else leave(status)
    sys.__stdout__.close = sys.__stdout__.flush  # forks end by these two
    if not torch.cuda.is_available():
        Tensor.cuda = nn.Module.cuda = lambda self, *args, **kwargs: self
        Tensor.half = nn.Module.half = lambda self: self
        torch.cuda.empty_cache = lambda: None
        for kind in (Tensor, nn.Module):
            kind.to = _without_cuda(kind.to)
    sys.meta_path.insert(0, _Downloads(weights))


def compute_in_double() -> None:
    """Let code that asks for single precision compute in double, from now on."""
    import torch
    from torch.overrides import TorchFunctionMode

    def double(x: Any) -> Any:
        return torch.float64 if x is torch.float32 else x

    class InDouble(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            if func in (torch.Tensor.to, torch.Tensor.type):
                args, kwargs = map(double, args), {key: double(value) for key, value in kwargs.items()}
            return func(*args, **kwargs)

    torch.Tensor.float = torch.Tensor.double
    torch.set_default_dtype(torch.float64)
    InDouble().__enter__()


def _without_cuda(to: Any) -> Any:
    @functools.wraps(to)
    def moved(self: Any, *args: Any, **kwargs: Any) -> Any:
        args = tuple("cpu" if str(a).startswith("cuda") else a for a in args)
        return to(self, *args, **{k: "cpu" if str(v).startswith("cuda") else v for k, v in kwargs.items()})

    return moved


class _Downloads:
    """Before each import, gives modules that can download OpenAI's weights the random ones."""

    def __init__(self, weights: Path):
        self.weights = weights

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        for module in list(sys.modules.values()):
            models = vars(module).get("_MODELS") if isinstance(module, types.ModuleType) else None
            if isinstance(models, dict) and "_download" in vars(module):
                module._download = lambda url, *args, models=models, **kwargs: str(
                    random_clip(self.weights, next(name for name, known in models.items() if known == url))
                )


def random_clip(folder: Path, name: str) -> Path:
    """Return a file with random weights of one of OpenAI's CLIPs, at its full size, as OpenAI's state dict."""
    import torch

    from kdpl.clip.weights import openai_clip

    path = folder / f"{name.replace('/', '-')}.pt"
    if not path.is_file():
        layers = {"RN50": (3, 4, 6, 3), "RN101": (3, 4, 23, 3), "ViT-B/16": 12, "ViT-B/32": 12}[name]
        width, patch = (64, None) if name.startswith("RN") else (768, int(name[-2:]))
        embed = {"RN50": 1024}.get(name, 512)
        torch.manual_seed(11)
        with torch.random.fork_rng():
            model = importlib.import_module(f"{openai_clip().__name__}.model").CLIP(
                embed, 224, layers, width, patch, 77, 49408, 512, 8, 12
            )
        torch.save({key: value.to(torch.float16) for key, value in model.state_dict().items()}, path)
    return path


def inside(args: argparse.Namespace, result: dict[str, Any]) -> None:
    """Let the fork's main() build and train a trainer; put what came of it into `result`."""
    import kdpl.trainers  # noqa: F401  before Dassl
    from kdpl import install

    stand_in(Path(args.weights))
    import dassl
    from dassl.engine.trainer import TrainerBase

    train = TrainerBase.train  # one epoch, also if train.py sets OPTIM.MAX_EPOCH itself
    TrainerBase.train = lambda self, start_epoch, max_epoch: train(self, start_epoch, min(max_epoch, 1))
    result["dassl"] = getattr(dassl, "__version__", "bundled")
    path = Path("train.py").resolve()
    source = path.read_bytes()
    code = compile(install.apply_changes(source, install.missing_changes(source)), str(path), "exec", dont_inherit=True)
    if args.inside == "list":
        sys.argv = ["train.py"]
        exec(code, {"__name__": "listed", "__file__": str(path)})
        from dassl.engine import TRAINER_REGISTRY

        from kdpl.trainers.offers import is_ours, why_not
        from kdpl.trainers.wrapped import DistilledTrainer

        classes = {name: TRAINER_REGISTRY.get(name) for name in TRAINER_REGISTRY.registered_names()}
        classes = {n: c for n, c in classes.items() if not c.__module__.startswith(("dassl.", "kdpl."))}
        result["trainers"] = [name for name, c in classes.items() if issubclass(c, DistilledTrainer)]
        result["not"] = {n: why for n, c in classes.items() if TRAINS & set(vars(c)) and not is_ours(c) and (why := why_not(c))
                         and not issubclass(c, DistilledTrainer)}  # fmt: skip
        return
    watch(result)
    if args.double:
        compute_in_double()
    config, settings = configuration(args.inside.partition("_")[2], args.labels)
    name = args.inside.partition("_")[2] if args.labels else args.inside
    sys.argv = ["train.py", "--trainer", name, "--seed", "1", "--root", f"{args.root}/", "--output-dir", args.output,
                "--config-file", config, "--dataset-config-file", str(next(Path("configs").rglob("caltech101.yaml"))),
                *args.flags, *settings, *args.set, *(("TEST.NO_TEST", "True") if args.untested else ())]  # fmt: skip
    module = types.ModuleType("__main__")
    module.__file__ = str(path)
    sys.modules["__main__"] = module
    try:
        exec(code, vars(module))
    except SystemExit as end:
        if end.code not in (None, 0):
            raise
    result["ran"] = True


def configuration(trainer: str, labels: bool) -> tuple[str, list[str]]:
    """Return the fork's file for a trainer, and the settings of a short run on a CPU."""
    import yaml

    files = sorted(Path("configs/trainers").rglob("*.yaml"))
    near = [f for f in files if trainer.lower() in (f.stem.lower(), *map(str.lower, f.parent.parts))]
    near += sorted((f for f in files if f.parent.name.lower() in trainer.lower()), key=lambda f: -len(f.parent.name))
    file = [*near, *files][0]
    given = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    size = (given.get("DATALOADER") or {}).get("TRAIN_X", {}).get("BATCH_SIZE", 32)
    batch = str(min(BATCH, size))
    settings = ["DATALOADER.NUM_WORKERS", "0", "DATALOADER.TRAIN_X.BATCH_SIZE", batch, "DATALOADER.TEST.BATCH_SIZE", batch,
                "DATASET.NUM_SHOTS", "-1", "DATASET.SUBSAMPLE_CLASSES", "base", "OPTIM.MAX_EPOCH", "1",
                "OPTIM.WARMUP_EPOCH", "-1", "TRAIN.PRINT_FREQ", "1"]  # fmt: skip
    if not labels:
        settings += ["TRAINER.KDPL.TEACHER", "emoji_teacher", "TRAINER.KDPL.PREC", "fp32"]
    nodes = set(re.findall(r"TRAINER\.(\w+)\.PREC\b", Path("train.py").read_text(encoding="utf-8", errors="replace")))
    return str(file), [*settings, *(x for node in sorted(nodes) for x in (f"TRAINER.{node}.PREC", "fp32"))]


def formula(logits: Any, teacher: Any) -> Any:
    """Return KDPL's loss of each row in double precision, as the paper has it."""
    log_s, log_t = logits.double().log_softmax(1), teacher.detach().double().log_softmax(1)
    return 0.5 * (log_t.exp() * (log_t - log_s) + log_s.exp() * (log_s - log_t)).sum(1)  # (rows,)


def watch(result: dict[str, Any]) -> None:
    """Put into `result` what a distilled trainer learns, and how far the losses of its first step are from the formula."""
    import torch

    from kdpl.distill.pseudo_labels import DistilledStep
    from kdpl.trainers.wrapped import DistilledTrainer

    train, answer, step = DistilledTrainer.train, DistilledStep.loss, DistilledTrainer.forward_backward
    steps = iter(range(STEPS))
    learned: dict[str, Any] = {}
    first: list[Any] = []  # the step whose losses are compared

    def trained(self: Any, *args: Any, **kwargs: Any) -> Any:
        learned.update({k: p for m in self._models.values() if m for k, p in m.named_parameters() if p.requires_grad})
        before = {k: p.detach().clone() for k, p in learned.items()}
        try:
            return train(self, *args, **kwargs)
        finally:
            digest = hashlib.sha256()
            for name, p in sorted(learned.items()):
                digest.update(name.encode() + p.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
            moved = sum(not torch.equal(before[k], p) for k, p in learned.items())
            result.update(moved=moved, learned=len(learned), digest=digest.hexdigest())
            result["said"] = sorted(name for name, _ in self._kdpl_said or ())

    def stepped(self: Any, *args: Any, **kwargs: Any) -> Any:
        return {"loss": 0.0} if next(steps, None) is None else step(self, *args, **kwargs)

    def answered(self: Any, name: str, input: Any, target: Any, *args: Any, **kwargs: Any) -> Any:
        loss = answer(self, name, input, target, *args, **kwargs)
        if loss is None or not input.requires_grad or (first and first[0] is not self):
            return loss
        first[:] = [self]
        expected = formula(input, self.teacher_logits[target.rows])  # (rows,)
        expected = expected if loss.dim() else expected.mean()
        wrt = [input, *learned.values()]
        found, exact = (torch.autograd.grad(x.sum(), wrt, retain_graph=True, allow_unused=True) for x in (loss, expected))
        differs = [float((loss - expected).detach().abs().max() / expected.detach().abs().max())]
        for grads in (slice(0, 1), slice(1, None)):  # with respect to the logits, and to what is learned
            pairs = [(a.double(), b.double()) for a, b in zip(found[grads], exact[grads], strict=True) if b is not None]
            largest = max((float(b.abs().max()) for _, b in pairs), default=0.0)
            differs.append(max((float((a - b).abs().max()) for a, b in pairs), default=0.0) / (largest or 1.0))
        result["differs"] = [max(pair) for pair in zip(differs, result.get("differs", differs), strict=True)]
        if torch.get_default_dtype() == torch.float64:
            raise SystemExit  # of `compute_in_double`, whose result this is
        return loss

    DistilledTrainer.train, DistilledStep.loss, DistilledTrainer.forward_backward = trained, answered, stepped


# -------------------------------------------------------------------------------------------------- the driver's process


def trial(fork: Path, trainer: str, args: argparse.Namespace, root: Path, *how: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as output:
        command = [sys.executable, Path(__file__).resolve(), str(fork), "--inside", trainer, "--root", root, "--output", output,
                   "--weights", args.weights, *how,
                   f"--flags={json.dumps(args.flags)}", f"--set={json.dumps(args.set)}"]  # fmt: skip
        folders = [args.dassl, *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, folders))}
        said = {"capture_output": True, "text": True, "errors": "replace"}
        try:
            process = subprocess.run([*map(str, command)], cwd=fork, env=env, timeout=SECONDS, check=False, **said)
        except subprocess.TimeoutExpired:
            return {"error": f"not over in {SECONDS} s"}
    if args.log:
        with Path(args.log).open("a", encoding="utf-8") as file:
            file.write(f"\n=== {fork} {trainer}\n{process.stdout[-6000:]}\n{process.stderr[-6000:]}\n")
    line = next((x for x in reversed(process.stdout.splitlines()) if x.startswith(RESULT)), None)
    return json.loads(line.removeprefix(RESULT)) if line else {"error": f"exit status {process.returncode}"}


def row(fork: Path, trainer: str, args: argparse.Namespace, data: list[Path]) -> str:
    """Run one trainer twice, and return its line of the table."""
    for root in data if args.before else ():
        trial(fork, trainer, argparse.Namespace(**{**vars(args), "flags": args.before}), root)
    found = trial(fork, trainer, args, data[0])
    same = exact = ""
    if found.get("moved") and "error" not in found:
        result = f"{found['moved']} of {found['learned']} parameters moved; {', '.join(found['said'])}"
        again = trial(fork, trainer, args, data[1], "--untested")
        same = "the same bits" if again.get("digest") == found["digest"] else f"DIFFERS {again.get('error', '')}"
        exact = said(found)
        if max(found.get("differs", [0])) > EXACT:
            exact += f"; in double precision {said(trial(fork, trainer, args, data[0], '--double'))}"
    else:
        with_labels = trial(fork, trainer, args, data[0], "--labels")
        other = "the same error" if with_labels.get("error") == found.get("error") else with_labels.get("error")
        stops = f"it stops too ({other})" if "error" in with_labels else "it runs"
        result = f"{found.get('error', 'nothing moved')}; with its labels {stops}"
    given = " ".join([*(f"first {' '.join(args.before)};" for _ in args.before[:1]), *args.flags, *args.set])
    return line_of(fork, trainer, result, found.get("dassl", ""), f"`{given}`" if given else "", same, exact)


def said(found: dict[str, Any]) -> str:
    return ", ".join(f"{x:.0e}" for x in found.get("differs", ())) or found.get("error", "-")


def line_of(fork: Path, trainer: str, result: str, dassl: str = "", given: str = "", same: str = "", exact: str = "") -> str:
    cells = [name_of(fork), commit(fork), dassl, trainer, given, result, same, exact]
    return f"| {' | '.join(cell.translate({ord('|'): '/', 10: ' '}).replace(f'{fork}/', '') for cell in cells)} |{os.linesep}"


def name_of(fork: Path) -> str:
    return fork.resolve().name if (fork / ".git").exists() else f"{fork.resolve().parent.name}/{fork.resolve().name}"


def commit(fork: Path) -> str:
    process = subprocess.run(["git", "-C", fork, "rev-parse", "--short=7", "HEAD"], capture_output=True, text=True, check=False)
    return process.stdout.strip()


def write(page: Path, line: str) -> None:
    """Put a row into the table of a page, in the place of that of the same fork and trainer."""
    before, _, rest = page.read_text(encoding="utf-8").partition(HEAD + RULE)
    rows, after = [], rest.splitlines(keepends=True)
    while after and after[0].startswith("|"):
        rows.append(after.pop(0))

    def key(row: str) -> list[str]:
        cells = row.split(" | ")
        return [cells[0], cells[3]]

    rows = sorted([*(other for other in rows if key(other) != key(line)), line], key=lambda row: list(map(str.lower, key(row))))
    page.write_text("".join([before, HEAD, RULE, *rows, *after]), encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("forks", nargs="+", type=Path, metavar="FORK")
    parser.add_argument("--dassl", default="", help="folder that `import dassl` is to find, in place of the bundled engine")
    parser.add_argument("--only", nargs="*", default=[], metavar="NAME", help="these trainers alone, as KDPL_MMRL")
    parser.add_argument("--flags", type=json.loads, default=[], help="further flags of the fork's command, a JSON list")
    parser.add_argument("--before", type=json.loads, default=[], help="flags of a command that prepares, a JSON list")
    parser.add_argument("--set", type=json.loads, default=[], help="settings KEY VALUE, a JSON list")
    parser.add_argument("--weights", default=tempfile.gettempdir(), help="folder that keeps the random CLIPs")
    parser.add_argument("--page", type=Path)
    parser.add_argument("--log", default="", help="file that gets what the runs print")
    for name in ("--inside", "--root", "--output"):
        parser.add_argument(name, default="", help=argparse.SUPPRESS)
    for name in ("--labels", "--double", "--untested"):
        parser.add_argument(name, action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.inside:
        sys.path[0] = os.getcwd()
        sys.path.append(str(ROOT / "tests"))
        result: dict[str, Any] = {}
        try:
            inside(args, result)
        except (Exception, SystemExit) as error:  # of the fork's own code, of any kind
            traceback.print_exc()
            result["error"] = f"{type(error).__name__}: {str(error).strip()[:160]}"
        sys.__stdout__.write(f"\n{RESULT}{json.dumps(result)}\n")
        sys.__stdout__.flush()
        return 0
    with tempfile.TemporaryDirectory() as folder:
        data = [write_data(Path(folder, name), permute=name == "permuted") for name in ("true", "permuted")]
        for fork in args.forks:
            listed = {"trainers": args.only} if args.only else trial(fork, "list", args, data[0])
            if "trainers" not in listed:
                print(f"{fork}: {listed.get('error')}", flush=True)
            refused = {name: f"not offered: {why}" for name, why in listed.get("not", {}).items()}
            for name in [*listed.get("trainers", ()), *refused]:
                line = line_of(fork, name, refused[name]) if name in refused else row(fork, name, args, data)
                print(line, end="", flush=True)
                if args.page:
                    write(args.page, line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
