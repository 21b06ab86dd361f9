"""Sort photos in the browser, by names that one changes while looking: `kdpl open PHOTOS` or `kdpl open OUT`.

One pass over the photos computes their features, which OUT keeps; what is ready is shown already. Names and labels are sorted
by at once, and OUT is what `kdpl fit` makes: `kdpl predict OUT` names other photos.
"""

import argparse
import sys
import threading
import time
import webbrowser
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from kdpl.common import exits
from kdpl.common.class_names import read_class_names
from kdpl.common.messages import duration
from kdpl.config.keys import ConfigError
from kdpl.config.teachers import one_teacher
from kdpl.photos import models
from kdpl.photos.fit import DEFAULT, guarded
from kdpl.photos.outputs import claim, refuse_inside
from kdpl.photos.waiting import doing

FIRST = 64  # photos after which something is shown; then, whenever there are a quarter more


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="kdpl open",
        usage="%(prog)s PHOTOS_OR_OUT [names.txt] [options]",
        description="Sort photos in the browser, by names that you change while looking.",
    )
    add = parser.add_argument
    add("what", metavar="PHOTOS_OR_OUT", help="folder of photos, or the output folder of kdpl fit or kdpl open")
    add("names", nargs="?", metavar="names.txt", help="names to begin with, one a line (default: groups of similar photos)")
    add("-o", "--output", metavar="OUT", help="folder for the features and what you decide (default: ./NAME_OF_PHOTOS.kdpl)")
    add("--student", default=models.STUDENT, metavar="CLIP", help=f"the CLIP that is used (default: {models.STUDENT})")
    teachers = f"{models.ON_GPU}, without a GPU {models.ON_CPU}"
    add("--teacher", metavar="CLIP", help=f"the CLIP it learns from (default: {teachers})")
    add("--template", default=DEFAULT, metavar="S", help=f"the teacher's sentence (default: '{DEFAULT}')")
    add("--port", type=int, default=0, metavar="N", help="of the page (default: a free one)")
    add("--no-browser", action="store_true", help="print the address and open nothing")
    add("--quiet", action="store_true", help="no progress")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    args = parse_args(argv)
    return guarded(lambda: run(args))


def run(args: argparse.Namespace) -> int:
    """Serve the page until the command is stopped; return the exit status."""
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"kdpl open needs {error.name}: pip install 'kdpl[app]'") from None
    what = Path(args.what)
    if not what.is_dir():
        raise ConfigError(f"'{what}' is not a folder: expected a folder of photos, or the output folder of kdpl fit.")
    names = read_class_names(args.names) if args.names else []
    with doing("Loading PyTorch", quiet=args.quiet):
        from kdpl.app.journal import Journal
        from kdpl.app.server import serve
        from kdpl.app.session import Session
        from kdpl.app.sorting import Sorter
        from kdpl.photos.answers import Words
        from kdpl.photos.learn import vocabulary_for
        from kdpl.photos.pile import read_pile

    pile, output = read_pile(what), what
    if pile is None:
        output = Path(args.output or f"{what.resolve().name}.kdpl")
        refuse_inside(output, what)
        pile = read_pile(output)
    if pile is None:
        photos, chosen = what.absolute(), (args.student, one_teacher(args.teacher or models.default_teacher(), "--teacher"))
        template = args.template
    else:
        photos, chosen = Path(pile.facts["folder"]), (pile.facts["student"], pile.facts["teacher"])
        template = pile.facts["template"]
        if not photos.is_dir():
            raise ConfigError(f"The photos of '{output}' were in '{photos}', which is not there.")
    claim(output, "fit", write=True)
    output.mkdir(parents=True, exist_ok=True)
    journal = Journal(output)
    if not journal.read() and not names and (output / "names.txt").is_file():
        names = read_class_names(output / "names.txt")
    if names:
        journal.add({"do": "add", "names": names})
    words = Words(*chosen, template)
    sorter = Sorter(words, pile, vocabulary_for(chosen[0]))
    session = Session(photos, output, sorter)
    look = threading.Thread(target=_guarded_look, args=(session, words, args.quiet), name="look", daemon=True)

    def ready(address: str) -> None:
        print(f"{address}\nStop with Ctrl-C; everything is saved in '{output}'.", flush=True)
        look.start()
        if not args.no_browser:
            webbrowser.open(address)

    serve(session, args.port, ready)
    return 0


def _guarded_look(session, words, quiet: bool) -> None:
    try:
        _look(session, words, quiet)
    except Exception as error:  # shown in the page: the person does not look at the terminal
        session.progressed(f"Stopped: {error}", session.total, False)
        print(f"error: {error}", file=sys.stderr)


def _look(session, words, quiet: bool) -> None:
    """Encode the photos that the pile does not have, and sort what is ready from time to time."""
    from kdpl.common.images.files import list_images
    from kdpl.distill.teacher import Teacher
    from kdpl.photos.fitting import empty_pile, facts_of
    from kdpl.photos.learn import vocabulary_for
    from kdpl.photos.pile import Towers, complete

    folder, out = session.folder, session.out
    session.progressed(f"Loading {words.student_name} and {words.teacher_name}", 0, False)
    student, teacher = words.student, words.teacher
    pile = session.sorter.pile
    if pile is None:
        pile = empty_pile(facts_of(words, folder) | {"mirror": False}, words, vocabulary_for(words.student_name))
    else:
        pile = pile.unchanged(folder)
    template = (words.template,)
    towers = Towers(student, Teacher(teacher, ["a", "b"], template, student.mean, student.std, text_features=words.of_teacher(["a", "b"])))
    order = [path.relative_to(folder).as_posix() for path in list_images(folder).images]
    order = [path for path in pile.paths if path in set(order)] + [path for path in order if path not in set(pile.paths)]
    known, began, bad = len(pile), time.monotonic(), []
    reached = [known]
    shown = known

    def on_seen(count: int) -> None:
        reached[0] += count
        passed, done = time.monotonic() - began, reached[0] - known
        left = (len(order) - reached[0] - len(bad)) * passed / max(1, done)
        session.progressed(f"{reached[0]:,} of {len(order):,} photos, {done / passed:.0f} a second, {duration(left)} left", len(order), False)

    session.grow(pile, "Looking at photos", len(order))
    with doing("Looking at photos", len(order) - known, "photo", quiet) as bar:
        while reached[0] + len(bad) < len(order):
            upto = max(FIRST, shown * 5 // 4 + 1)
            before = reached[0]
            pile = complete(pile, folder, order[:upto], towers, out, lambda path, error: bad.append(path), on_seen)
            bar.update(reached[0] - before)
            shown = upto
            session.grow(pile.distinct(), f"{len(pile):,} of {len(order):,} photos", len(order))
            if upto >= len(order):
                break
    session.grow(pile.distinct(), f"{len(bad):,} photos could not be read" if bad else "", len(order))


Progress = Callable[[str], None]
_ = replace
