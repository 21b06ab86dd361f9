"""The command `kdpl`, also as `python -m kdpl`: every command of the package under one name."""

import importlib
import os
import sys
from collections.abc import Sequence
from typing import NamedTuple

from kdpl.common import exits
from kdpl.common.command import run_command
from kdpl.common.environment import VERSION
from kdpl.common.files import cache_dir
from kdpl.common.messages import did_you_mean


class Command(NamedTuple):
    """A command: the module whose `main(argv)`, or the function of it that does it, and one line about it."""

    module: str
    about: str


COMMANDS = {
    "fit": Command("kdpl.photos.fit", "learn from a folder of photos and a list of names"),
    "refit": Command("kdpl.photos.fit:refit_main", "other names for the photos of a fit, in seconds"),
    "predict": Command("kdpl.predict", "name what is on photos; tables, a gallery, folders by class"),
    "open": Command("kdpl.app.open", "sort photos in the browser, by names that you change while looking"),
    "names": Command("kdpl.photos.names", "propose class names for a folder of photos"),
    "eval": Command("kdpl.photos.evaluate", "accuracy on photos whose labels you have checked"),
    "export": Command("kdpl.photos.share", "a folder with an ONNX model and a page that serves itself"),
    "push": Command("kdpl.photos.share:push_main", "share prompts on the Hugging Face Hub"),
    "interpret": Command("kdpl.interpret", "say what learned prompts mean, in words"),
    "models": Command("kdpl.clip.listing", "the CLIPs there are, and which weights are on this machine"),
    "train": Command("kdpl.train", "train and evaluate with the flags of CoOp and its forks"),
    "cache": Command("kdpl.cache", "compute the features of fixed views once, for many runs"),
    "prepare": Command("kdpl.datasets.prepare", "fetch and check benchmark data sets"),
    "sweep": Command("kdpl.sweep", "run many trainings, here or on Slurm"),
    "report": Command("kdpl.report", "tables of all runs below some folders"),
}


def usage() -> str:
    """Return the help of `kdpl`, which fits a screen of 24 lines."""
    lines = [f"  {name:<10} {command.about}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: kdpl COMMAND ...",
            "",
            *lines,
            "",
            "kdpl fit --demo                          see it work, without photos or weights",
            "kdpl fit PHOTOS names.txt -o OUT         learn from your photos",
            "kdpl predict OUT PHOTOS --csv FILE       use them",
            "kdpl COMMAND --help                      all flags of a command",
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return its exit status."""
    return run_command(lambda: _run(argv))


def _run(argv: Sequence[str] | None) -> int:
    name, *rest = [*(sys.argv[1:] if argv is None else argv)] or ["--help"]
    if name in ("--help", "-h", "help"):
        print(usage())
        return 0
    if name in ("--version", "-V"):
        print(f"kdpl {VERSION}")
        return 0
    if name not in COMMANDS:
        hint = f"{did_you_mean(name, COMMANDS)} See kdpl --help."
        print(f"error: '{name}' is not a command of kdpl.{hint}", file=sys.stderr)
        return exits.BAD_INPUT
    command = COMMANDS[name]
    if name in ("predict", "eval", "names"):  # threads that wait for the model and spin would keep the cores from the decoders
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        cache_dir()
    except ValueError as error:  # before minutes of work
        return exits.report(error, exits.BAD_INPUT)
    sys.argv[0] = f"kdpl {name}"  # what the parsers print
    module, _, function = command.module.partition(":")
    return getattr(importlib.import_module(module), function or "main")(rest)


if __name__ == "__main__":
    sys.exit(main())
