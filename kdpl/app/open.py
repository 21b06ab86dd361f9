"""Sort photos in the browser, by names that one changes while looking: `kdpl open PHOTOS` or `kdpl open OUT`.

One pass over the photos computes their features, which OUT keeps; what is ready is shown already. Names and labels are sorted
by at once, and OUT is what `kdpl fit` makes: `kdpl predict OUT` names other photos.
"""

import argparse
import sys
import threading
import webbrowser
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from kdpl.common.outputs import FIT, take_folder
from kdpl.common.safe_text import read_class_names
from kdpl.config.keys import ConfigError
from kdpl.photos.commands import FEATURES, add_clip_flags, doing, guarded, teacher_name


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
    add_clip_flags(parser)
    add("--port", type=int, default=0, metavar="N", help="of the page (default: a free one)")
    add("--no-browser", action="store_true", help="print the address and open nothing")
    add("--quiet", action="store_true", help="no progress")
    return parser.parse_args(argv)


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    """Serve the page until the command is stopped; return the exit status."""
    args = parse_args(argv)
    for module in ("starlette", "uvicorn"):
        if find_spec(module) is None:
            raise ConfigError(f"kdpl open needs {module}: pip install 'kdpl[app]'")
    what = Path(args.what)
    if not what.is_dir():
        raise ConfigError(f"'{what}' is not a folder: expected a folder of photos, or the output folder of kdpl fit.")
    names = read_class_names(args.names) if args.names else []
    with doing("Loading PyTorch", quiet=args.quiet):
        from kdpl.app.journal import Journal
        from kdpl.app.server import serve
        from kdpl.app.session import Session
        from kdpl.app.sorting import Sorter
        from kdpl.photos.pile import Words, read_pile

    output = what if (what / FEATURES).is_file() else Path(args.output or f"{what.resolve().name}.kdpl")
    pile, photos = read_pile(output), what.absolute()
    words = Words(args.student, teacher_name(args.teacher), args.template)
    if pile.facts:
        before, words = Path(pile.facts["folder"]), Words(*(pile.facts[key] for key in ("student", "teacher", "template")))
        photos = before if output is what else photos
        if not photos.is_dir():
            raise ConfigError(f"The photos of '{output}' are not in '{photos}': say where, kdpl open PHOTOS -o '{output}'.")
        if before.is_dir() and not before.samefile(photos):
            raise ConfigError(f"'{output}' is of the photos in '{before}', not '{photos}': choose another folder (-o).")
    take_folder(output, FIT, photos)
    journal = Journal(output)
    if not journal.read():
        of_fit = output / "names.txt"
        names = names or (read_class_names(of_fit) if of_fit.is_file() else [])
        if names:
            journal.add({"do": "begin", "names": names})
    elif names:
        print(f"'{output}' has names already, which the page shows: '{args.names}' was not read again.", file=sys.stderr)
    session = Session(photos, output, Sorter(words, pile))

    def ready(address: str) -> None:
        print(address, f"Stop with Ctrl-C; all that the page shows is saved in '{output}'.", sep="\n", flush=True)
        threading.Thread(target=session.look, args=(args.quiet,), name="look", daemon=True).start()
        if not args.no_browser:
            webbrowser.open(address)

    serve(session, args.port, ready)
    return 0
