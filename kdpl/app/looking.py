"""The pass over the photos of a session, in a thread of its own: what is ready is sorted and shown already."""

import sys
import time

from kdpl.app.session import Session
from kdpl.common.images import list_images
from kdpl.photos.commands import doing
from kdpl.photos.pile import Towers, Words, begin_pile, complete

FIRST = 64  # photos after which something is shown; then, whenever there are a third more


def look(session: Session, words: Words, quiet: bool) -> None:
    """Encode the photos that the pile does not have; an error is shown in the page, too."""
    try:
        _look(session, words, quiet)
    except Exception as error:  # the person looks at the page, not at the terminal
        session.progressed(f"Stopped: {error}")
        print(f"error: {error}", file=sys.stderr, flush=True)


def _look(session: Session, words: Words, quiet: bool) -> None:
    folder, pile = session.folder, session.sorter.pile
    session.progressed(f"Loading {words.student_name} and {words.teacher_name}")
    towers = Towers(words)
    pile = begin_pile(pile, words, folder, pile.facts.get("seed", 1))
    there = [path.relative_to(folder).as_posix() for path in list_images(folder).images]
    known, present = set(pile.paths), set(there)
    order = [path for path in pile.paths if path in present] + [path for path in there if path not in known]
    began, seen, bad, total, before = time.monotonic(), 0, set(), len(order), len(known & present)

    def on_seen(count: int) -> None:
        nonlocal seen
        seen += count
        done, rate = before + seen + len(bad), seen / (time.monotonic() - began)
        left = (total - done) / rate / 60
        session.progressed(f"{done:,} of {total:,} photos, {rate:.0f} a second, {left:.1f} minutes left")
        bar.update(count)

    with doing("Looking at photos", total - before, "photo", quiet) as bar:
        pile, upto = pile.of(order), max(FIRST, before)
        session.grow(pile.distinct(), "Looking at photos", total)
        while before + seen + len(bad) < total:
            some = [path for path in order[:upto] if path not in bad]
            pile = complete(pile, folder, some, towers, session.out, lambda path, error: bad.add(path), on_seen)
            session.grow(pile.distinct(), session.doing, total)
            upto = upto * 4 // 3
    pile.write(session.out)
    session.grow(pile.distinct(), f"{len(bad):,} photos could not be read" if bad else "", total)
