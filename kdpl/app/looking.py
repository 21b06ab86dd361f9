"""The pass over the photos of a session, in a thread of its own: what is ready is sorted and shown already."""

import sys
import time

from kdpl.app.session import Session
from kdpl.common.images import list_images
from kdpl.distill.teacher import Teacher
from kdpl.photos.answers import Words
from kdpl.photos.fitting import empty_pile, facts_of
from kdpl.photos.pile import Towers, complete
from kdpl.photos.waiting import doing

FIRST = 64  # photos after which something is shown; then, whenever there are a third more
ONE = ["a photo"]  # the towers' teacher looks at images alone, and needs a name


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
    student = words.student
    texts = words.of_teacher(ONE)
    towers = Towers(student, Teacher(words.teacher, ONE, words.template, student.mean, student.std, text_features=texts))
    if not pile.facts:
        pile = empty_pile(facts_of(words, folder, 1) | {"minutes": None, "photos": 0, "mirror": True}, words)
    else:
        pile = pile.unchanged(folder)
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
