"""Vocabularies: the candidate names when the class names are unknown (class-agnostic mode, arXiv:2407.03056)."""

import csv
import hashlib
import http.client
import importlib.util
import io
import os
import re
import urllib.request
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from kdpl.common.files import atomic_write, cache_dir
from kdpl.common.messages import did_you_mean
from kdpl.text.prompts import encode

VOCABULARIES = ("imagenet21k", "openimages")
OPENIMAGES_URL = "https://storage.googleapis.com/openimages/v7/oidv7-class-descriptions.csv"
COLUMNS = ("ClassName", "DisplayName")  # of a CSV file; Open Images uses the second
MAX_NAMES = 200_000  # more than WordNet's nouns; a teacher would encode a longer list for hours
LONGEST = 53  # tokens of a name: of 77 the rest is for start, end, full stop, and 16 context vectors or a sentence
_MAX_BYTES = 64 * 2**20  # of a file
_TIMEOUT = 30  # seconds without a response
_CONTROL = re.compile(r"[\x00-\x09\x0b\x0c\x0e-\x1f\x7f-\x9f]")  # all but the ends of lines


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
        what = "is a folder, not a file" if Path(name).expanduser().is_dir() else "is neither a vocabulary nor a file"
        suggestion = "" if os.path.dirname(name) else did_you_mean(name, VOCABULARIES)
        raise VocabularyError(
            f"TRAINER.KDPL.VOCABULARY '{name}' {what}.{suggestion} Expected {', '.join(VOCABULARIES)}, or the path of "
            f"a text file with one name per line or of a CSV file with a column {COLUMNS[0]}."
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
    by_ids: dict[tuple[int, ...], str] = {}
    too_long = []
    for n in _distinct(names, name):
        try:
            ids = tuple(encode(n))
        except ValueError as error:
            raise VocabularyError(f"Vocabulary '{name}': {error}") from None
        if len(ids) > longest:
            too_long.append(n)
        elif ids:
            by_ids.setdefault(ids, n)
    if too_long:
        shown = "; ".join(n if len(n) <= 60 else f"{n[:57]}..." for n in too_long[:3])
        print(f"Vocabulary '{name}': left out {len(too_long):,} names of more than {longest} tokens ({shown})")
    if not by_ids:
        raise VocabularyError(
            f"Vocabulary '{name}' holds no name of at most {longest} tokens: expected at least one."
            if too_long
            else f"Vocabulary '{name}' is empty: expected at least one name."
        )
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


def _normalized(name: str) -> str:
    return " ".join(name.replace("_", " ").split())


def _distinct(names: Iterable[str], source: str) -> list[str]:
    """Return normalised names, the first of those that differ only in case; blank names are skipped."""
    by_lower: dict[str, str] = {}
    for name in map(_normalized, names):
        by_lower.setdefault(name.lower(), name)
        if len(by_lower) > MAX_NAMES:
            raise VocabularyError(f"Vocabulary '{source}' holds more than {MAX_NAMES:,} names, the maximum: shorten it.")
    by_lower.pop("", None)
    return list(by_lower.values())


# --------------------------------------------------------------------------------------------------------- ImageNet-21k


def _lemma_file() -> Path:
    spec = importlib.util.find_spec("timm")  # finds the folder only: importing timm would take seconds
    path = Path(spec.origin).parent / "data/_info/imagenet_synset_to_lemma.txt" if spec and spec.origin else None
    if path is None or not path.is_file():
        raise VocabularyError(
            "TRAINER.KDPL.VOCABULARY 'imagenet21k' is read from the package timm, "
            f"{'whose installed version lacks ' + str(path) if path else 'which is not installed'}: "
            "pip install --upgrade timm, or give the path of a file of names."
        )
    return path


def _imagenet21k() -> Iterator[str]:
    for line in _lemma_file().read_text(encoding="utf-8").splitlines():
        synset, _, lemmas = line.partition("\t")
        if synset.startswith("n"):
            yield lemmas.split(", ")[0]


# ---------------------------------------------------------------------------------------------------------- Open Images


def _openimages() -> list[str]:
    """Read the class descriptions from the cache, downloading them at first use.

    The file has no published checksum, so its digest at first use is written beside it and compared from then on.
    """
    path = cache_dir() / "vocabularies" / OPENIMAGES_URL.rsplit("/", 1)[1]
    if not path.is_file():
        _download(path)
    digest, record = hashlib.sha256(path.read_bytes()).hexdigest(), path.with_name(f"{path.name}.sha256")
    if record.is_file():
        expected = record.read_text(encoding="utf-8", errors="replace").split()
        if expected[:1] != [digest]:
            raise VocabularyError(
                f"{path} has changed since its first use: its SHA-256 is {digest}, {record.name} says "
                f"{' '.join(expected[:1]) or 'nothing'}. Delete both files to download it again, or only {record.name} "
                "to trust the file as it is."
            )
    names = _read_file(path)
    if not record.is_file():
        with atomic_write(record, "w") as file:
            file.write(f"{digest}  {path.name}\n")
    return names


def _download(path: Path) -> None:
    print(f"Downloading {OPENIMAGES_URL}")
    try:
        with urllib.request.urlopen(OPENIMAGES_URL, timeout=_TIMEOUT) as answer:
            data = answer.read(_MAX_BYTES + 1)
            announced = answer.headers.get("Content-Length")
        if announced is not None and len(data) != int(announced):
            raise ValueError(f"got {len(data):,} of {announced} bytes")
        if not data.removeprefix(b"\xef\xbb\xbf").startswith(b"LabelName,"):
            raise ValueError("the response is not a table of class descriptions")
        with atomic_write(path) as file:
            file.write(data)
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise VocabularyError(
            f"The vocabulary 'openimages' is not cached and cannot be downloaded ({error or type(error).__name__}). Download "
            f"{OPENIMAGES_URL} another way and put it into {path.parent} as {path.name}, or choose another "
            "TRAINER.KDPL.VOCABULARY: imagenet21k needs no download."
        ) from error


# ---------------------------------------------------------------------------------------------------------------- files


def _read_file(path: Path) -> list[str]:
    """Read a text file, one name a line, or a CSV file with a column of names."""
    text = _text_of(path)
    if path.suffix.lower() != ".csv":
        return text.splitlines()
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [column.strip() for column in next(rows, [])]
        column = next((header.index(c) for c in COLUMNS if c in header), None)
        if column is None:
            raise VocabularyError(
                f"Vocabulary '{path}' has no column {COLUMNS[0]}: its header is '{', '.join(header[:10])}'. "
                f"Rename the column of names to {COLUMNS[0]}."
            )
        names = []
        for row in rows:
            if row and column >= len(row):
                raise VocabularyError(
                    f"Vocabulary '{path}', line {rows.line_num}: {len(row)} fields, but the header has {len(header)}."
                )
            names += row[column : column + 1]
    except csv.Error as error:
        raise VocabularyError(f"Vocabulary '{path}', line {rows.line_num}: not a CSV file ({error}).") from None
    return names


def _text_of(path: Path) -> str:
    """Return the content of a UTF-8 text file; control characters are refused."""
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise VocabularyError(f"Vocabulary '{path}' cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise VocabularyError(
            f"Vocabulary '{path}' is not UTF-8 text: line {line} ({error.reason}). Save it as UTF-8."
        ) from None
    if len(content) > _MAX_BYTES:
        raise VocabularyError(f"Vocabulary '{path}' has more than {_MAX_BYTES:,} bytes, too many for a list of names.")
    if control := _CONTROL.search(text):
        line = text.count("\n", 0, control.start()) + 1
        raise VocabularyError(
            f"Vocabulary '{path}', line {line}: control character U+{ord(control[0]):04X}. Expected only names, one per line, "
            "or a file that ends in .csv."
        )
    return text
