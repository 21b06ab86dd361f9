"""Make a fork of CoOp know KDPL: `python -m kdpl.install PATH/TO/FORK` (docs/forks.md).

Shows and makes the three changes to the fork's `train.py`, then tries KDPL_CoOp and the fork's own trainers without labels, by
the fork's own main(). What is found is printed at once. The exit status is 0 if a trainer has learned without labels and
nothing has failed that works with labels: limits of the fork's own are notes.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from kdpl.common import exits
from kdpl.common.command import run_command
from kdpl.forks import edit
from kdpl.forks.report import try_fork


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m kdpl.install", description=__doc__.splitlines()[0])
    parser.add_argument("fork", help="folder of a fork of CoOp, with its train.py")
    parser.add_argument("--dry-run", action="store_true", help="show the changes, change and run nothing")
    parser.add_argument("--undo", action="store_true", help="take the changes out again")
    parser.add_argument("--no-trial", action="store_true", help="make the changes, run nothing")
    parser.add_argument("--trainer", default="", help="which of the fork's trainers to try without labels (default: all)")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY VALUE", help="settings of every run")
    parser.add_argument("--prepare", default="", metavar="FILE", help="Python that runs before the fork's main()")
    parser.add_argument("--root", default="", metavar="DATA", help="try it on the fork's own data set there, not on drawings")
    parser.add_argument("--layers", default="", metavar="N", help="of the trial's CLIP (default: 3, or 12 if needed)")
    args = parser.parse_args(argv)
    path = Path(args.fork) / "train.py"
    try:
        if args.undo:
            print(edit.undo(path))
            return 0
        changes = edit.missing_changes(edit.read_source(path), str(path))
        for change in changes:
            print(f"{path}, behind line {change.line}: {change.text.strip()}")
        if not changes:
            print(f"{path} has all three changes.")
        elif not args.dry_run:
            print(f"Changed. What it was is in '{edit.install(path)}'; --undo takes the changes out.")
    except (edit.EditError, OSError) as error:
        return exits.report(error, exits.BAD_INPUT)
    if args.dry_run or args.no_trial:
        return 0
    print("Each trial takes about a minute: train.py runs with a small CLIP of random weights, on drawings.", flush=True)
    works, learned = True, False
    prepare, root = (os.path.abspath(given) if given else "" for given in (args.prepare, args.root))
    for finding in try_fork(path.parent, args.trainer, args.set, prepare, args.layers, root):
        print(finding, flush=True)
        works = works and finding.works is not False
        learned = learned or "moved" in finding.found
    if not learned:
        print("No trainer has learned without labels: what stopped each of them, and what to do, is said above.")
    return 0 if works and learned else exits.FAILED


if __name__ == "__main__":
    sys.exit(run_command(main))
