"""The command line of the report: `kdpl report output`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from kdpl.common import exits
from kdpl.common.command import run_command
from kdpl.config.keys import SPLITS
from kdpl.experiments.report.formats import FORMATS, render
from kdpl.experiments.report.runs import read_scores
from kdpl.experiments.report.tables import all_tables


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables that the runs under the given folders allow; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="kdpl report",
        description="Base-to-new, cross-dataset, domain generalisation and few-shot tables of all runs under the "
        "folders, from their results.json.",
    )
    parser.add_argument("folders", nargs="+", help="output folders, of one run or of many")
    parser.add_argument("--format", choices=FORMATS, default="terminal")
    parser.add_argument("--seeds", nargs="+", type=int, default=[], help="expected seeds (default: all that a table has)")
    parser.add_argument(
        "--intervals", action="store_true", help="of differences the 95 %% interval over seeds and classes (bootstrap)"
    )
    parser.add_argument("--split", choices=SPLITS, default="test", help="images that were tested on (default: test)")
    args = parser.parse_args(argv)
    try:
        scores, notes = read_scores(args.folders, args.split)
        tables = all_tables(scores, args.seeds)
        for note in notes:
            print(f"Note: {note}", file=sys.stderr)
        if not tables:
            print(f"There is no result on the {args.split} images among these runs yet.", file=sys.stderr)
            return exits.FAILED
        print(render(tables, args.format, args.intervals), end="")
        choices = [path for folder in args.folders for path in sorted(Path(folder).glob("sweeps/*/search.txt"))]
        for path in choices if args.format == "terminal" else ():
            print(f"\n{path.parent.name}: {path.read_text(encoding='utf-8')}", end="")
    except (OSError, ValueError) as error:
        return exits.report(error, exits.BAD_INPUT)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
