"""The images of a prediction."""

import os
import sys
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from kdpl.common import sources
from kdpl.common.images import list_images


class InputError(ValueError):
    """A flag or an image path cannot be used."""


class Found(NamedTuple):
    """The images of a prediction.

    Attributes:
        images: paths, each once.
        unreadable: entries in folders that cannot be read, with the reasons.
        media: pictures and films in folders that are not read, by suffix.
    """

    images: list[str]
    unreadable: dict[str, str]
    media: Counter[str]


def find(given: Sequence[str]) -> Found:
    """Return the images of files, folders and "-", which stands for a list of paths on the standard input.

    The list has a path in each line, or, as `find -print0` writes it, paths that end in a zero byte.

    Raises:
        InputError: a path does not exist, or a folder has no image.
    """
    missing = [path for path in given if path != "-" and not (os.path.lexists(path) or sources.is_source(path))]
    if missing:
        shown = ", ".join(f"'{path}'" for path in missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise InputError(f"There is no {shown} in '{os.getcwd()}': expected image files or folders of images.")
    images: dict[str, None] = {}
    unreadable, media = {}, Counter()
    for path in given:
        if path == "-":
            images |= dict.fromkeys(_listed())
            continue
        if not (os.path.isdir(path) or sources.is_source(path)):
            images[path] = None
            continue
        try:
            listing = list_images(path, natural=True)
        except OSError as error:
            raise InputError(f"The folder '{path}' cannot be listed: {error.strerror}.") from None
        if not listing.images:
            others = listing.others + len(listing.unreadable)
            raise InputError(
                f"'{path}' holds no images, at any depth ({others:,} other files). Name files one by one if their suffix is "
                "unusual."
            )
        images |= dict.fromkeys(map(str, listing.images))
        unreadable |= {str(path): reason for path, reason in listing.unreadable.items()}
        media += listing.media
    return Found(list(images), unreadable, media)


def _listed() -> list[str]:
    data = sys.stdin.buffer.read()
    paths = [os.fsdecode(line.rstrip(b"\r")) for line in data.split(b"\0" if b"\0" in data else b"\n") if line.strip()]
    if not paths:
        raise InputError("The list of paths on the standard input (-) is empty: expected a path in each line.")
    return paths
