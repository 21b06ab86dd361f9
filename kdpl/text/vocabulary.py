"""Vocabularies: the candidate names when the class names are unknown (class-agnostic mode, arXiv:2407.03056)."""

import csv
import http.client
import importlib.util
import io
import os
import urllib.request
from collections.abc import Iterable, Sequence
from pathlib import Path

from kdpl.common.files import atomic_write, cache_dir
from kdpl.common.messages import did_you_mean
from kdpl.common.safe_text import read_text
from kdpl.text.prompts import encode

VOCABULARIES = ("imagenet21k", "openimages")
OPENIMAGES_URL = "https://storage.googleapis.com/openimages/v7/oidv7-class-descriptions.csv"
COLUMNS = ("ClassName", "DisplayName")  # of a CSV file; Open Images uses the second
MAX_NAMES = 200_000  # more than WordNet's nouns; a teacher would encode a longer list for hours
LONGEST = 53  # tokens of a name: of 77 the rest is for start, end, full stop, and 16 context vectors or a sentence
_TIMEOUT = 30  # seconds without a response


class VocabularyError(ValueError):
    """A vocabulary is unknown, missing or not a list of names."""


def check_vocabulary(name: str) -> None:
    """Check that a vocabulary exists, without reading it.

    Raises:
        VocabularyError: `name` is neither one of `VOCABULARIES` nor a file.
    """
    if name == "imagenet21k":
        _lemma_file()
    elif name not in VOCABULARIES and not Path(name).expanduser().is_file():
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
        VocabularyError: an unknown name, or a file without usable names or with more than `MAX_NAMES`; the message says
            where and why.
    """
    check_vocabulary(name)
    names = {"imagenet21k": _imagenet21k, "openimages": _openimages}.get(name, lambda: _read_file(Path(name).expanduser()))()
    try:
        by_ids, too_long = _by_ids(names, longest)
    except ValueError as error:
        raise VocabularyError(f"Vocabulary '{name}': {error}") from None
    if too_long:
        shown = "; ".join(n if len(n) <= 60 else f"{n[:57]}..." for n in too_long[:3])
        print(f"Vocabulary '{name}': left out {len(too_long):,} names of more than {longest} tokens ({shown})")
    if not by_ids:
        raise VocabularyError(f"Vocabulary '{name}' holds no name of at most {longest} tokens: expected at least one.")
    kept = by_ids.copy()
    for n in exclude:
        kept.pop(tuple(encode(_normalized(n))), None)
    if exclude:
        print(f"Vocabulary '{name}': left out {len(by_ids) - len(kept):,} names of the data set's own classes")
    if not kept:
        raise VocabularyError(
            f"Vocabulary '{name}' holds only the data set's own class names, which are left out: "
            "choose a larger one, or set TRAINER.KDPL.EXCLUDE_CLASSNAMES False."
        )
    return list(kept.values())


def _by_ids(names: Iterable[str], longest: int) -> tuple[dict[tuple[int, ...], str], list[str]]:
    """Return the names by token ids, and those of more than `longest` tokens; the first of those that differ only in case."""
    by_lower: dict[str, str] = {}
    for name in map(_normalized, names):
        by_lower.setdefault(name.lower(), name)
    by_lower.pop("", None)
    if len(by_lower) > MAX_NAMES:
        raise ValueError(f"it holds more than {MAX_NAMES:,} names, the maximum: shorten it.")
    by_ids: dict[tuple[int, ...], str] = {}
    too_long = []
    for name in by_lower.values():
        ids = tuple(encode(name))
        if len(ids) > longest:
            too_long.append(name)
        elif ids:
            by_ids.setdefault(ids, name)
    return by_ids, too_long


def _normalized(name: str) -> str:
    return " ".join(name.replace("_", " ").split())


def _lemma_file() -> Path:
    spec = importlib.util.find_spec("timm")  # finds the folder only: importing timm would take seconds
    path = Path(spec.origin if spec else "timm").parent / "data/_info/imagenet_synset_to_lemma.txt"
    if not path.is_file():
        raise VocabularyError(
            f"TRAINER.KDPL.VOCABULARY 'imagenet21k' is read from the package timm, and '{path}' is not there: pip install "
            "--upgrade timm, or give the path of a file of names."
        )
    return path


def _imagenet21k() -> list[str]:
    lines = (line.partition("\t") for line in _lemma_file().read_text(encoding="utf-8").splitlines())
    return [lemmas.split(", ")[0] for synset, _, lemmas in lines if synset.startswith("n")]


def _openimages() -> list[str]:
    """Read the class descriptions from the cache, downloading them at first use."""
    path = cache_dir() / "vocabularies" / OPENIMAGES_URL.rsplit("/", 1)[1]
    if not path.is_file():
        print(f"Downloading {OPENIMAGES_URL}")
        try:
            with urllib.request.urlopen(OPENIMAGES_URL, timeout=_TIMEOUT) as answer:
                data = answer.read()  # raises IncompleteRead if the connection ends early
            if not data.removeprefix(b"\xef\xbb\xbf").startswith(b"LabelName,"):
                raise ValueError("the response is not a table of class descriptions")
            with atomic_write(path) as file:
                file.write(data)
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise VocabularyError(
                f"The vocabulary 'openimages' is not cached and cannot be downloaded ({error or type(error).__name__}). "
                f"Download {OPENIMAGES_URL} another way and put it into {path.parent} as {path.name}, or choose another "
                "TRAINER.KDPL.VOCABULARY: imagenet21k needs no download."
            ) from error
    return _read_file(path)


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
            raise ValueError(f"no column {COLUMNS[0]} in its header '{', '.join(list(rows.fieldnames or ())[:10])}'")
        names = [row[column] for row in rows]
        if None in names:
            raise ValueError(f"row {names.index(None) + 1} has fewer fields than the header")
        return names
    except (OSError, ValueError, csv.Error) as error:
        raise VocabularyError(
            f"Vocabulary '{path}' is not a list of names ({error}): expected UTF-8 text with one name per line, or a file that "
            f"ends in .csv with a column {COLUMNS[0]}."
        ) from None
