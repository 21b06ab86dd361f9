"""Fail the N-th write, sync, rename or open of a short training, for every N, and start it again.

    python tests/faults/nth.py
    python tests/faults/nth.py --step 7 --first 3

Whatever fails, the run must continue to the same end, or be refused in one line that names a file; and the same command
afterwards must end with the prompts, results and history of an unbroken run, to the last bit. Counted are the operations on
files below the output folder and the cache. Prints what failed and how it ended, and exits with 1 if anything else happened.
"""

import argparse
import builtins
import contextlib
import errno
import io
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import kdpl  # first: it makes `dassl` importable

import torch  # isort: skip
import torch.utils.tensorboard  # isort: skip  # once, here: the forked runs share it
from support import ROOT, emoji_args  # isort: skip

import kdpl.classifier.classifier
import kdpl.datasets
import kdpl.trainers.baselines
from kdpl import train
from kdpl.common import exits
from kdpl.training.checkpoint import load_checkpoint

RUN = (
    *("DATASET.NUM_SHOTS", 1, "DATASET.SUBSAMPLE_CLASSES", "base", "OPTIM.MAX_EPOCH", 2, "DATALOADER.TRAIN_X.BATCH_SIZE", 15),
    *("TRAIN.CHECKPOINT_FREQ", 1, "TRAIN.CHECKPOINT_EVERY_MINUTES", 1e-9, "TRAINER.KDPL.VIEWS", 2, "DATALOADER.NUM_WORKERS", 0),
)
CALLS = ("open", "write", "fsync", "replace", "rename", "pwrite", "mkdir")


class Faults:
    """Counts operations on files below some folders, and makes one of them fail."""

    def __init__(self, folders: list[str], nth: int | None):
        self.folders, self.nth, self.count, self.failed = folders, nth, 0, ""
        self._paths: dict[int, str] = {}  # of file descriptors

    def tick(self, call: str, path: object) -> None:
        path = self._paths.get(path, "") if isinstance(path, int) else os.path.abspath(os.fsdecode(path))
        if not any(path.startswith(folder) for folder in self.folders):
            return
        self.count += 1
        if self.count == self.nth:
            self.failed = f"{call} of {Path(path).name}"
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)

    def install(self) -> None:
        """Put counting functions in the place of Python's."""
        opened, descriptor, fdopen = builtins.open, os.open, os.fdopen

        def counted_descriptor(path, flags, *args, **kwargs):
            if flags & (os.O_WRONLY | os.O_RDWR):
                self.tick("open", path)
            fd = descriptor(path, flags, *args, **kwargs)
            self._paths[fd] = os.path.abspath(os.fsdecode(path))
            return fd

        def counted_open(file, mode="r", *args, **kwargs):
            if isinstance(file, int) or not set(mode) & set("wax+"):
                return opened(file, mode, *args, **kwargs)
            self.tick("open", file)
            return self._counted(opened(file, mode, *args, **kwargs), file)

        def counted_fdopen(fd, *args, **kwargs):
            return self._counted(fdopen(fd, *args, **kwargs), self._paths.get(fd, ""))

        builtins.open = io.open = counted_open
        os.open, os.fdopen = counted_descriptor, counted_fdopen
        for name in ("fsync", "replace", "rename", "pwrite", "mkdir"):
            setattr(os, name, self._wrapped(name, getattr(os, name)))

    def _wrapped(self, name, call):
        def counted(path, *args, **kwargs):
            self.tick(name, path)
            return call(path, *args, **kwargs)

        return counted

    def _counted(self, file, path):
        if path:
            write = file.write

            def counted_write(data):
                self.tick("write", path)
                return write(data)

            with contextlib.suppress(AttributeError):  # buffered binary files: their other calls are counted
                file.write = counted_write
        return file


def in_child(output: Path, nth: int | None) -> tuple[int, int, str, str]:
    """Run the training in a forked process; return exit status, operations counted, what failed and the last line printed."""
    report, printed = output.parent / "report.json", output.parent / "printed.txt"
    report.unlink(missing_ok=True)
    pid = os.fork()
    if pid == 0:
        status, faults = exits.FAILED, Faults([str(output), os.environ["KDPL_CACHE"]], nth)
        try:
            fd = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
            os.dup2(fd, 1)
            os.dup2(fd, 2)
            torch.set_num_threads(1)
            faults.install()
            arguments = [*emoji_args("KDPL_CoOp", output), *map(str, RUN), "TRAINER.KDPL.CACHE_DIR", str(output / "views")]
            status = train.main(arguments)
            sys.stdout.flush()
        except SystemExit as error:
            status = int(error.code or 0)
        except BaseException:  # what a run must not end with
            import traceback

            traceback.print_exc()
            status = 99
        finally:
            faults.nth = None
            sys.stderr.flush()
            with open(report, "w", encoding="utf-8") as file:
                json.dump([status, faults.count, faults.failed], file)
            os._exit(0)
    os.waitpid(pid, 0)
    lines = [line for line in printed.read_text(errors="replace").splitlines() if line.strip()]
    return *json.loads(report.read_text()), lines[-1] if lines else ""


def end_of(output: Path) -> dict[str, object]:
    """Return what a run has come to, times left out."""
    state = load_checkpoint(next(output.rglob("model.pth.tar-2")))
    (result,) = json.loads((output / "results.json").read_text())["results"]
    tensors = {name: value.tolist() for name, value in state["state_dict"].items()}
    return {"prompts": tensors, "accuracy": result["accuracy"], "history": (output / "history.csv").read_text()}


def check(first: int, step: int, last: int | None = None) -> list[str]:
    """Fail every `step`-th operation from the `first` on; return what went wrong."""
    wrong = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        os.environ["KDPL_CACHE"] = str(folder / "cache")
        drawn, kept = folder / "drawn", folder / "cache"
        status, _, _, line = in_child(folder / "drawing", None)  # draws the benchmark's images, once
        assert status == 0, line
        shutil.copytree(kept, drawn)
        status, total, _, line = in_child(folder / "unbroken", None)
        assert status == 0, line
        expected = end_of(folder / "unbroken")
        print(f"{total} operations in an unbroken run", flush=True)
        for nth in range(first, min(last or total, total) + 1, step):
            output = folder / "out"
            shutil.rmtree(output, ignore_errors=True)
            shutil.rmtree(kept)
            shutil.copytree(drawn, kept)
            status, _, failed, line = in_child(output, nth)
            ended = "went on" if status == 0 else line
            if status and not (status in (exits.FAILED, exits.BAD_INPUT) and line.startswith("error: ")):
                wrong.append(f"{nth} ({failed}): status {status}: {line}")
            again, *_, line = in_child(output, None)
            if again or end_of(output) != expected:
                wrong.append(f"{nth} ({failed}): the same command again ended otherwise (status {again}): {line}")
            print(f"{nth}: {failed}: {ended[:150]}", flush=True)
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first", type=int, default=1, help="operation to begin with (default: 1)")
    parser.add_argument("--step", type=int, default=1, help="fail every n-th (default: all)")
    parser.add_argument("--last", type=int, help="operation to end with (default: the last)")
    args = parser.parse_args()
    os.chdir(ROOT)
    wrong = check(args.first, args.step, args.last)
    print("\n".join(["", f"{len(wrong)} failures", *wrong]))
    return 1 if wrong else 0


__all__ = ["check", "kdpl"]

if __name__ == "__main__":
    sys.exit(main())
