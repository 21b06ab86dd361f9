"""Other names, more names or corrected labels for the photos of a fit, whose features are known: `kdpl refit OUT names.txt`."""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from kdpl.common import lock
from kdpl.common.class_names import read_class_names
from kdpl.common.outputs import FIT, check_folder, take_folder
from kdpl.config.keys import ConfigError
from kdpl.photos.fit import guarded
from kdpl.photos.waiting import doing


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="kdpl refit",
        description="Fit other names, more names or corrected labels to the photos of a fit, from their features.",
    )
    add = parser.add_argument
    add("fit", metavar="OUT", help="output folder of kdpl fit")
    add("names", metavar="names.txt", help="class names, one a line")
    add("-o", "--output", metavar="OUT2", help="folder to write to (default: OUT itself)")
    add("--labels", metavar="FILE", help="learn these labels, too (default: none, also if the fit had some)")
    add("--sentence", action="append", default=[], metavar="S", help="compare this sentence too; may be repeated")
    add("--quiet", action="store_true", help="no progress")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    args = parse_args(argv)
    return guarded(lambda: run(args))


def run(args: argparse.Namespace) -> int:
    """Refit as the command line asks; return the exit status."""
    source, output = Path(args.fit), Path(args.output or args.fit)
    names = read_class_names(args.names)
    if len(names) < 2:
        raise ConfigError(f"'{args.names}' has one class name alone: a single name is learned by `kdpl fit`.")
    check_folder(output, FIT)
    with doing("Loading PyTorch", quiet=args.quiet):
        from kdpl.bundle.learned import refuse_doubles
        from kdpl.photos import fitting
        from kdpl.photos.answers import Words, refit
        from kdpl.photos.learn import Task
        from kdpl.photos.pile import FILE, read_pile

    start = time.perf_counter()
    pile = read_pile(source)
    if pile is None:
        raise ConfigError(f"'{source / FILE}' is missing: expected the output folder of `kdpl fit`.")
    refuse_doubles(names, f"'{args.names}'")
    facts, folder = pile.facts, Path(pile.facts["folder"])
    labels = fitting.labels_of(args.labels, names, folder, set(pile.paths)) if args.labels else {}
    words = Words(facts["student"], facts["teacher"], facts["template"])
    fitting.refuse_same(words, names)
    some = fitting.different(pile, labels, folder)
    fitted = refit(some, words, names, labels, args.sentence, facts["seed"])
    take_folder(output, FIT)
    lock.occupy(output)
    if output.resolve() != source.resolve():
        pile.write(output)
    task = Task(folder, names, output, facts["student"], facts["teacher"], facts["template"], facts["seed"])
    print(f"{len(some):,} photos of '{source}' for {len(names):,} names; no photo was read")
    fitting.finish(task, words, some, fitted, labels)
    print("", f"Done in {time.perf_counter() - start:.1f} s. Next:", "", f"  kdpl predict {output} PHOTOS", sep="\n")
    return 0
