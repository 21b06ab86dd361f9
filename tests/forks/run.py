"""Run trainers of a public fork without labels; print their rows of docs/forks_runs.md.

    python tests/forks/run.py FORK KDPL_NAME ... [--dassl FOLDER] [--flags JSON] [--before JSON] [--set JSON]

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
import re
import shutil
import subprocess
import sys
import tempfile
import traceback
import types
from pathlib import Path
from typing import Any

RESULT = "RESULT "
ROOT = Path(__file__).resolve().parents[2]
NAMES = ("ewer", "gerenuk", "saxophone", "sunflower", "tick")  # base and new classes of Caltech101, of each of which
NAMES += ("crayfish", "helicopter", "ketch", "mandolin", "metronome")  # the teacher finds drawings
IMAGES = {"train": 2, "val": 1, "test": 1}  # a class
BATCH, STEPS, EXACT = 2, 2, 1e-6


def write_data(folder: Path) -> list[Path]:
    """Write drawings under the names of ten classes of Caltech101, as its files and its split file lie on disk.

    Returns:
        Two folders: in the second one, the training images have labels of other classes, of the base and the new ones.
    """
    import torch
    import torchvision.transforms as T

    from kdpl.clip.loading import load_clip
    from kdpl.common.files import cache_dir
    from kdpl.datasets.emoji.scenes import EmojiMeals, scene_folder
    from kdpl.training.batches import read_image

    clip, half = load_clip("emoji_teacher", device=torch.device("cpu")), len(NAMES) // 2
    paths, p = sorted(scene_folder(cache_dir(), EmojiMeals.plan_name).rglob("*.png"))[::7], clip.preprocessing
    transform = T.Compose([*p.resize_steps(), T.ToTensor(), T.Normalize(p.mean, p.std)])
    with torch.no_grad():
        text = clip.model.encode_text(clip.tokenizer([f"a photo of a {name}." for name in NAMES]))
        images = clip.frozen_image_features(torch.stack([transform(read_image(path)) for path in paths]))
        logits = 100 * images @ torch.nn.functional.normalize(text).t()
    found = torch.cat([logits[:, :half].softmax(1), logits[:, half:].softmax(1)], 1)  # (drawings, C)
    for permute in (0, 1):
        data, split = folder / str(permute) / "caltech-101", {part: [] for part in IMAGES}
        for c, best in enumerate(found.argsort(0, descending=True).t().tolist()):  # the teacher finds each class
            for part, number in ((part, n) for part, count in IMAGES.items() for n in range(count)):
                image = f"{NAMES[c]}/{part}_{number}.png"
                label = c // half * half + (c + 1 + permute * (part == "train") * (1 + number)) % half  # never the teacher's
                path = data / "101_ObjectCategories" / image
                path.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(paths[best[number]], path)
                split[part].append([image, label, NAMES[label]])
        (data / "split_zhou_Caltech101.json").write_text(json.dumps(split), encoding="utf-8")
    return [folder / "0", folder / "1"]


# ------------------------------------------------------------------------------------------------- in the fork's process


def stand_in() -> None:
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
    sys.meta_path.insert(0, _Downloads())


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

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        for module in list(sys.modules.values()):
            models = vars(module).get("_MODELS") if isinstance(module, types.ModuleType) else None
            if isinstance(models, dict) and "_download" in vars(module):
                module._download = lambda url, *args, models=models, **kwargs: str(
                    random_clip(next(name for name, known in models.items() if known == url))
                )


def random_clip(name: str) -> Path:
    """Return a file, which is kept, with random weights of one of OpenAI's CLIPs, at its full size, as OpenAI's state dict."""
    import torch

    from kdpl.clip.weights import openai_clip

    path = Path(tempfile.gettempdir(), f"random-{name.replace('/', '-')}.pt")
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


def inside(trainer: str, args: argparse.Namespace, result: dict[str, Any]) -> None:
    """Let the fork's main() build and train a trainer; put what came of it into `result`."""
    import kdpl.trainers  # noqa: F401  before Dassl
    from kdpl import install

    stand_in()
    import dassl
    from dassl.engine.trainer import TrainerBase

    train = TrainerBase.train  # one epoch, also if train.py sets OPTIM.MAX_EPOCH itself
    TrainerBase.train = lambda self, start_epoch, max_epoch: train(self, start_epoch, min(max_epoch, 1))
    result["dassl"] = getattr(dassl, "__version__", "bundled")
    path = Path("train.py").resolve()
    source = path.read_bytes()
    code = compile(install.apply_changes(source, install.missing_changes(source)), str(path), "exec", dont_inherit=True)
    watch(result)
    if args.double:
        compute_in_double()
    theirs = trainer.partition("_")[2]
    config, settings = configuration(theirs, args.labels)
    dataset = next(Path("configs").rglob("datasets/**/caltech101.yaml"))
    sys.argv = ["train.py", "--trainer", theirs if args.labels else trainer, "--seed", "1", "--root", f"{args.root}/",
                "--output-dir", args.output, "--config-file", config, "--dataset-config-file", str(dataset),
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


def trial(trainer: str, args: argparse.Namespace, root: Path, *how: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as output:
        command = [sys.executable, Path(__file__).resolve(), args.fork, trainer, "--inside", "--root", root, "--output", output,
                   f"--flags={json.dumps(args.flags)}", f"--set={json.dumps(args.set)}", *how]  # fmt: skip
        folders = [args.dassl, *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, folders))}
        process = subprocess.run([*map(str, command)], cwd=args.fork, env=env, stdout=subprocess.PIPE, text=True, check=False)
    line = next((x for x in reversed(process.stdout.splitlines()) if x.startswith(RESULT)), None)
    return json.loads(line.removeprefix(RESULT)) if line else {"error": f"exit status {process.returncode}"}


def row(trainer: str, args: argparse.Namespace, data: list[Path]) -> str:
    """Run one trainer twice, and return its line of the table."""
    for root in data if args.before else ():
        trial(trainer, argparse.Namespace(**{**vars(args), "set": args.before}), root)
    found, same, exact = trial(trainer, args, data[0]), "", ""
    if found.get("moved") and "error" not in found:
        result = f"{found['moved']} of {found['learned']} parameters moved; {', '.join(found['said'])}"
        again = trial(trainer, args, data[1], "--untested")
        same = "the same bits" if again.get("digest") == found["digest"] else f"DIFFERS {again.get('error', '')}"
        exact = said(found)
        if max(found.get("differs", [0])) > EXACT:
            exact += f"; in double precision {said(trial(trainer, args, data[0], '--double'))}"
    else:
        with_labels = trial(trainer, args, data[0], "--labels").get("error")
        other = (
            "it runs" if not with_labels else "it stops too" + (f" ({with_labels})" if with_labels != found["error"] else "")
        )
        result = f"{found.get('error', 'nothing moved')}; with its labels {other}"
    git = ["git", "-C", args.fork, "rev-parse", "--short=7", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    name = args.fork.name if (args.fork / ".git").exists() else f"{args.fork.parent.name}/{args.fork.name}"
    given = " ".join([*(("first", *args.before, "then") if args.before else ()), *args.flags, *args.set])
    cells = [name, commit, found.get("dassl", ""), trainer, given and f"`{given}`", result, same, exact]
    return f"| {' | '.join(cell.translate({ord('|'): '/', 10: ' '}).replace(f'{args.fork}/', '') for cell in cells)} |"


def said(found: dict[str, Any]) -> str:
    return ", ".join(f"{x:.0e}" for x in found.get("differs", ())) or found.get("error", "-")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("fork", type=lambda name: Path(name).resolve())
    parser.add_argument("trainers", nargs="+", metavar="TRAINER", help="such as KDPL_MMRL, as `kdpl.install` names them")
    parser.add_argument("--dassl", default="", help="folder that `import dassl` is to find, in place of the bundled engine")
    parser.add_argument("--flags", type=json.loads, default=[], help="further flags of the fork's command, a JSON list")
    parser.add_argument("--set", type=json.loads, default=[], help="settings KEY VALUE, a JSON list")
    parser.add_argument("--before", type=json.loads, default=[], help="settings of a command that prepares, a JSON list")
    for name in ("--root", "--output"):
        parser.add_argument(name, default="", help=argparse.SUPPRESS)
    for name in ("--inside", "--labels", "--double", "--untested"):
        parser.add_argument(name, action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.inside:
        sys.path[0] = os.getcwd()
        result: dict[str, Any] = {}
        try:
            inside(args.trainers[0], args, result)
        except (Exception, SystemExit) as error:  # of the fork's own code, of any kind
            traceback.print_exc()
            result["error"] = f"{type(error).__name__}: {str(error).strip()[:160]}"
        sys.__stdout__.write(f"\n{RESULT}{json.dumps(result)}\n")
        sys.__stdout__.flush()
        return 0
    with tempfile.TemporaryDirectory() as folder:
        data = write_data(Path(folder))
        for trainer in args.trainers:
            print(row(trainer, args, data), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
