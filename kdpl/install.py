"""Make a fork of CoOp know KDPL: `python -m kdpl.install PATH/TO/FORK` (docs/forks.md).

Shows and makes the three changes to the fork's `train.py`, then tries KDPL_CoOp and one of the fork's own trainers, wrapped, on
the embedded benchmark. The exit status is 0 if all of it works.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from kdpl.common import exits
from kdpl.forks import edit
from kdpl.forks.report import try_fork


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m kdpl.install", description=__doc__.splitlines()[0])
    parser.add_argument("fork", help="folder of a fork of CoOp, with its train.py")
    parser.add_argument("--dry-run", action="store_true", help="show the changes, change and run nothing")
    parser.add_argument("--undo", action="store_true", help="take the changes out again")
    parser.add_argument("--no-trial", action="store_true", help="make the changes, run nothing")
    parser.add_argument("--trainer", default="", help="which of the fork's trainers to try, wrapped")
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
    findings = try_fork(path.parent, args.trainer)
    print("\n".join(map(str, findings)))
    return 0 if all(finding.works for finding in findings) else exits.FAILED


if __name__ == "__main__":
    sys.exit(main())
