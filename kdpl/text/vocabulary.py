"""Vocabularies: the candidate names when the class names are unknown (class-agnostic mode, arXiv:2407.03056)."""

import csv
import http.client
import importlib.util
import io
import os
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from kdpl.common.files import atomic_write, cache_dir
from kdpl.common.messages import did_you_mean
from kdpl.common.safe_text import read_text
from kdpl.text.prompts import encode

VOCABULARIES = ("imagenet21k", "openimages")
OPENIMAGES_URL = "https://storage.googleapis.com/openimages/v7/oidv7-class-descriptions.csv"
COLUMNS = ("ClassName", "DisplayName")  # of a CSV file; Open Images uses the second
LONGEST = 53  # tokens of a name: of 77 the rest is for start, end, full stop, and 16 context vectors or a sentence
_TIMEOUT = 30  # seconds without a response


class VocabularyError(ValueError):
    """A vocabulary is unknown, missing or not a list of names."""


def check_vocabulary(name: str) -> None:
    """Check that a vocabulary exists, without reading it.

    Raises:
        VocabularyError: `name` is neither one of `VOCABULARIES` nor a file.
    """
    if name not in VOCABULARIES and not Path(name).expanduser().is_file():
        suggestion = "" if os.path.dirname(name) else did_you_mean(name, VOCABULARIES)
        raise VocabularyError(
            f"TRAINER.KDPL.VOCABULARY '{name}' is neither a vocabulary nor a file.{suggestion} Expected "
            f"{', '.join(VOCABULARIES)}, or the path of a text file with one name per line or of a CSV file with a column "
            f"{COLUMNS[0]}."
        )


def load_vocabulary(name: str, exclude: Sequence[str] = (), longest: int = LONGEST) -> list[str]:
    """Return the distinct names of a vocabulary, in its order.

    Underscores become spaces. Of names that the text towers cannot distinguish, because they differ only in case or have the
    same token ids, the first stays. Names too long for a prompt are left out, which is reported in one line.

    Args:
        name: `imagenet21k`, the first lemma of each ImageNet-21k synset, from the installed timm; `openimages`, the
            class descriptions of Open Images V7, downloaded once; or the path of a text file (one name per line) or of a
            CSV file (with a header and a column ClassName).
        exclude: names to leave out, compared by token ids: the data set's own class names.
        longest: tokens that a name may have, see `Student.longest_name`.

    Raises:
        VocabularyError: an unknown name, or a file without usable names; the message says where and why.
    """
    check_vocabulary(name)
    spelled: dict[str, str] = {}
    for each in map(_normalized, _names_of(name)):
        spelled.setdefault(each.lower(), each)
    by_ids: dict[tuple[int, ...], str] = {}
    try:
        for each in spelled.values():
            by_ids.setdefault(tuple(encode(each)), each)
    except ValueError as error:
        raise VocabularyError(f"Vocabulary '{name}': {error}") from None
    by_ids.pop((), None)
    if too_long := [each for ids, each in by_ids.items() if len(ids) > longest]:
        print(f"Vocabulary '{name}': left out {len(too_long):,} names of more than {longest} tokens: {too_long[0][:60]}, ...")
    short = {ids: each for ids, each in by_ids.items() if len(ids) <= longest}
    own = {tuple(encode(_normalized(each))) for each in exclude} & short.keys()
    if exclude:
        print(f"Vocabulary '{name}': left out {len(own):,} names of the data set's own classes")
    if len(short) == len(own):
        raise VocabularyError(
            f"Vocabulary '{name}' holds no name of at most {longest} tokens beside the data set's own class names, which are "
            "left out: choose a larger one, or set TRAINER.KDPL.EXCLUDE_CLASSNAMES False."
        )
    return [each for ids, each in short.items() if ids not in own]


def _normalized(name: str) -> str:
    return " ".join(name.replace("_", " ").split())


def _names_of(name: str) -> list[str]:
    if name != "imagenet21k":
        return _read_file(_openimages() if name == "openimages" else Path(name).expanduser())
    timm = importlib.util.find_spec("timm").submodule_search_locations[0]  # importing it would take seconds
    lines = Path(timm, "data/_info/imagenet_synset_to_lemma.txt").read_text(encoding="utf-8").splitlines()
    return [line.split("\t")[1].split(", ")[0] for line in lines if line.startswith("n")]


def _openimages() -> Path:
    """Return the file of class descriptions in the cache, downloaded at first use."""
    path = cache_dir() / "vocabularies" / OPENIMAGES_URL.rsplit("/", 1)[1]
    if path.is_file():
        return path
    print(f"Downloading {OPENIMAGES_URL}")
    try:
        with urllib.request.urlopen(OPENIMAGES_URL, timeout=_TIMEOUT) as answer:
            data = answer.read()  # raises IncompleteRead if the connection ends early
        if COLUMNS[1].encode() not in data[:100]:
            raise ValueError("the response is not a table of class descriptions")
        with atomic_write(path) as file:
            file.write(data)
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise VocabularyError(
            f"The vocabulary 'openimages' is not cached and cannot be downloaded ({error or type(error).__name__}). "
            f"Download {OPENIMAGES_URL} another way and put it into {path.parent} as {path.name}, or choose another "
            "TRAINER.KDPL.VOCABULARY: imagenet21k needs no download."
        ) from error
    return path


def _read_file(path: Path) -> list[str]:
    """Read a text file, one name a line, or a CSV file with a column of names."""
    try:
        text = read_text(path)
        if path.suffix.lower() != ".csv":
            if "\t" in text or "\0" in text:
                raise ValueError("it has tabs or binary data")
            return text.splitlines()
        rows = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        column = next((c for c in COLUMNS if c in (rows.fieldnames or ())), None)
        if column is None:
            raise ValueError(f"no column {COLUMNS[0]} in its header")
        return [row[column] or "" for row in rows]
    except (OSError, ValueError, csv.Error) as error:
        raise VocabularyError(
            f"Vocabulary '{path}' is not a list of names ({error}): expected UTF-8 text with one name per line, or a file that "
            f"ends in .csv with a column {COLUMNS[0]}."
        ) from None
