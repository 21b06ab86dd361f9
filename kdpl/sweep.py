"""Many runs from one file or from flags, on this machine or on a Slurm cluster.

    kdpl sweep configs/sweeps/emoji.yaml
    kdpl sweep configs/sweeps/base2new.yaml --data DATA --executor slurm --wait
    kdpl sweep status configs/sweeps/base2new.yaml
    kdpl sweep --protocol base2new --trainer CoOp KDPL_CoOp --datasets dtd --data DATA -- OPTIM.MAX_EPOCH 5

Finished runs are skipped, interrupted ones are resumed, and one that fails stops no other. So after any interruption: start the
same command again. docs/performance.md has the keys of the file; the flags have the same names and defaults.
"""

import argparse
import sys
from collections.abc import Sequence

from kdpl.common import exits
from kdpl.common.command import run_command
from kdpl.experiments.sweep import slurm, work
from kdpl.experiments.sweep.many import do_here, dry_run, planned, run_sweep
from kdpl.experiments.sweep.plan import PROTOCOLS, read_sweep, sweep_of

DESCRIBED = ("protocol", "steps", "trainers", "datasets", "source", "seeds", "shots", "config", "class_agnostic", "options")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    args = parse_args(list(sys.argv[1:] if argv is None else argv))
    try:
        if args.file:
            sweep = read_sweep(args.file, args.data, args.output)
        else:
            content = {key: value for key in (*DESCRIBED, "data", "output") if (value := getattr(args, key))}
            sweep = sweep_of(content, f"flags-{args.protocol}", "the flags")
        if args.status:
            return work.show(sweep, planned(sweep))
        if args.dry_run:
            dry_run(sweep, slurm.parameters(sweep) if args.executor == "slurm" else {}, args.redo)
            return 0
        if args.executor == "slurm":
            return slurm.run_on_slurm(sweep, args.wait, args.redo)
        return run_sweep(sweep, do_here(args.jobs), args.redo)
    except (ValueError, OSError) as error:
        return exits.report(error, exits.BAD_INPUT)


def parse_args(argv: list[str]) -> argparse.Namespace:
    """Return the flags; `options` holds the KEY VALUE pairs of --extra and those behind `--`."""
    asks = argv[:1] == ["status"]
    end = argv.index("--") if "--" in argv else len(argv)
    parser = argparse.ArgumentParser(
        prog=f"kdpl sweep{' status' if asks else ''}",
        usage="%(prog)s [SWEEP.yaml] [flags] [-- KEY VALUE ...]",
        description="Print of every run whether it is finished, running, failed or waiting." if asks else __doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("file", nargs="?", metavar="SWEEP.yaml", help="the sweep")
    parser.add_argument("--data", default="", help="folder of the data sets, in place of the file's")
    parser.add_argument("--output", default="", help="output folder, in place of the file's")
    what = parser.add_argument_group("the sweep, in place of a file")
    what.add_argument("--protocol", help=", ".join(PROTOCOLS))
    what.add_argument("--steps", nargs="+", metavar="STEP", help="train, test or both")
    what.add_argument("--trainer", "--trainers", dest="trainers", nargs="+", metavar="NAMES", help="trainers")
    what.add_argument("--datasets", nargs="+", metavar="NAMES", help="configs/datasets/NAME.yaml; with xd, to test on")
    what.add_argument("--source", nargs="+", metavar="NAMES", help="with xd: data sets to train on")
    what.add_argument("--seeds", nargs="+", metavar="NUMBERS", help="seeds")
    what.add_argument("--shots", nargs="+", metavar="NUMBERS", help="training images of each class")
    what.add_argument("--cfg", dest="config", metavar="NAME", help="configs/trainers/TRAINER/NAME.yaml, or NAME_*.yaml there")
    what.add_argument("--class-agnostic", metavar="1", help="class-agnostic KDPL; its folders end in -CA")
    what.add_argument("--extra", nargs="+", default=[], metavar="KEY VALUE", help="single settings, as behind --")
    if not asks:
        parser.add_argument("--executor", choices=("local", "slurm"), default="local", help="where to run (default: local)")
        parser.add_argument("--jobs", type=_jobs, default=0, metavar="N", help="local: runs at once, in place of the file's")
        parser.add_argument("--wait", action="store_true", help="slurm: wait for the runs, then print the report")
        parser.add_argument("--redo", action="store_true", help="do runs again that were made with other settings")
        parser.add_argument("--dry-run", action="store_true", help="print the commands, and run none")
    args = parser.parse_args(argv[asks:end])
    args.status = asks
    args.options = (*(word for words in args.extra for word in words.split()), *argv[end + 1 :])
    if bool(args.file) == any(getattr(args, key) for key in DESCRIBED):
        given = f"'{args.file}' and a sweep of flags" if args.file else "neither"
        parser.error(f"expected a sweep's file, or --protocol, --trainer and --datasets, and not both: got {given}.")
    return args


def _jobs(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least 1")
    return int(text)


if __name__ == "__main__":
    sys.exit(run_command(main))
