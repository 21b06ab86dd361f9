"""Run the trainers of public forks, wrapped, and print the table of docs/forks.md.

    python tests/forks/run.py FORK [FORK ...] [--dassl FOLDER] [--only NAME ...] [--prepare TRAINER=FILE]
                              [--set TRAINER:KEY=VALUE] [--layers N]

FORK is the folder of a fork's `train.py`; nothing in it is changed. Each trainer runs for some ten steps on the embedded
benchmark with a small CLIP of random weights, in a process of its own (kdpl/forks/trial.py); one that KDPL has too is compared
with KDPL's own in four steps. A trainer that needs files of its fork gets them from a Python file of --prepare.
"""

import argparse
import os
import sys
from pathlib import Path

from kdpl.forks.report import trial


def row(fork: Path, name: str, prepare: dict[str, str], settings: dict[str, list[str]], layers: str) -> str:
    """Run one trainer and return its line of the table."""
    extra = ["--prepare", prepare[name]] if name in prepare else []
    extra += ["--set", *settings[name]] if name in settings else []
    found = trial(fork, "--trainer", name, "--compare", "--layers", layers, *extra)
    identity = found.get("incomparable", "")
    if "moved" in found:
        result = f"{found['moved']} of {found['learned']}"
        if compared := found.get("compared"):
            identity = f"loss {compared['loss']:.0e}, parameters {compared['parameters']:.0e}"
    else:
        said = f"refused: {found['refused']}" if "refused" in found else f"error: {found.get('error')}"
        result = "; ".join(text for text in (said, found.get("where"), found.get("way_out")) if text)
    return f"| {fork.name} | {name} | {found.get('dassl', '')} | {result} | {identity} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("forks", nargs="+", type=Path, metavar="FORK")
    parser.add_argument("--dassl", default="", help="folder that `import dassl` is to find, in place of the bundled engine")
    parser.add_argument("--only", nargs="*", default=[], metavar="NAME", help="these trainers alone")
    parser.add_argument("--layers", default="3", metavar="N", help="of the small CLIP")
    parser.add_argument("--prepare", action="append", default=[], metavar="TRAINER=FILE")
    parser.add_argument("--set", action="append", default=[], metavar="TRAINER:KEY=VALUE")
    args = parser.parse_args()
    if args.dassl:
        if not Path(args.dassl, "dassl").is_dir():
            parser.error(f"--dassl '{args.dassl}' has no folder dassl: expected a checkout of Dassl.pytorch")
        os.environ["PYTHONPATH"] = os.pathsep.join(p for p in (args.dassl, os.environ.get("PYTHONPATH", "")) if p)
    prepare = {name: os.path.abspath(file) for name, file in (pair.split("=", 1) for pair in args.prepare)}
    settings: dict[str, list[str]] = {}
    for item in args.set:
        name, _, pair = item.partition(":")
        settings.setdefault(name, []).extend(pair.split("=", 1))
    print("| fork | trainer | Dassl | learned parameters that moved | against KDPL's own, four steps |")
    print("| --- | --- | --- | --- | --- |", flush=True)
    for fork in args.forks:
        listed = trial(fork)
        if "trainers" not in listed:
            print(f"| {fork.name} | | | error: {listed.get('error')}; {listed.get('way_out')} | |")
        for name in listed.get("trainers", ()):
            if not args.only or name in args.only:
                print(row(fork, name, prepare, settings, args.layers), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
