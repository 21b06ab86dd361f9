"""What stands in a bundle's metadata, checked before anything is computed with it."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from kdpl.classifier.decision import Decision
from kdpl.clip.inputs import Preprocessing, checked_preprocessing
from kdpl.common.messages import shorten
from kdpl.config.teachers import MOST_SENTENCES

MOST_NAMES = 100_000  # ImageNet-21k has 21,841
LONGEST = 1_000  # characters of a name or a sentence; a text tower reads 77 tokens


def check_names(names: Sequence[Any], what: str = "class names") -> None:
    """Refuse names that no classifier can have.

    Raises:
        ValueError: too many, not text, empty, too long, or one twice.
    """
    if len(names) > MOST_NAMES:
        raise ValueError(f"it has {len(names):,} {what}, expected at most {MOST_NAMES:,}")
    if not all(isinstance(name, str) for name in names):
        raise ValueError(f"its {what} are not all text")
    if wrong := [name for name in names if not name.replace("_", " ").strip() or len(name) > LONGEST]:
        raise ValueError(f"its {what} hold {shorten(wrong[0])}, expected 1 to {LONGEST:,} characters")
    seen: set[str] = set()
    for name in names:
        if (plain := " ".join(name.replace("_", " ").split())) in seen:
            raise ValueError(f"its {what} hold {shorten(name)} twice")
        seen.add(plain)


def check_results(results: Sequence[Any]) -> None:
    """Refuse results that are no measurements.

    Raises:
        ValueError: the message names the first value that cannot be.
    """
    for result in results:
        if not isinstance(result, Mapping):
            raise ValueError(f"its results hold {shorten(result)}, expected facts of a test")
        for key in ("dataset", "split", "classes"):
            if not isinstance(result.get(key), str):
                raise ValueError(f"'{key}' of its results is {shorten(result.get(key))}, expected text")
        for key in ("num_classes", "num_images"):
            value = result.get(key)
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise ValueError(f"'{key}' of its results is {shorten(value)}, expected a count")
        for key in ("accuracy", "macro_f1"):
            if not _is_number(result.get(key)) or not 0 <= result[key] <= 100:
                raise ValueError(f"'{key}' of its results is {shorten(result.get(key))}, expected a number of percent")


def checked_decision(content: Any) -> Decision:
    """Return the decision of `kdpl fit` that the metadata holds.

    Raises:
        ValueError: it cannot be used, or has too much.
    """
    if isinstance(content, Mapping):
        for key, most in (("sentences", MOST_SENTENCES), ("background", MOST_NAMES), ("classnames", MOST_NAMES)):
            texts = content.get(key) or []
            if isinstance(texts, list) and len(texts) > most:
                raise ValueError(f"it has {len(texts):,} {key}, expected at most {most:,}")
            if isinstance(texts, list) and (long := [t for t in texts if isinstance(t, str) and len(t) > LONGEST]):
                raise ValueError(
                    f"its {key} hold {shorten(long[0])} of {len(long[0]):,} characters, expected up to {LONGEST:,}"
                )
    return Decision.of(content)


def check_comparison(content: Any) -> None:
    """Refuse a table of `kdpl fit` that cannot be shown.

    Raises:
        ValueError: the message names the value.
    """
    if not isinstance(content, Mapping):
        raise ValueError(f"'comparison' of its metadata is {shorten(content)}, expected dict")
    if not content:
        return
    rows = content.get("rows")
    if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
        raise ValueError(f"'rows' of its comparison is {shorten(rows)}, expected a list of rows")
    if not isinstance(content.get("verdict"), str) or not isinstance(content.get("photos"), int):
        raise ValueError("its comparison has no verdict, or no number of photos")
    for row in rows:
        for key in ("agreement", "error", "divergence"):
            if not _is_number(row.get(key)):
                raise ValueError(f"'{key}' of its comparison is {shorten(row.get(key))}, expected a number")
        if not isinstance(row.get("prompts"), str):
            raise ValueError(f"'prompts' of its comparison is {shorten(row.get('prompts'))}, expected text")


def checked_images(content: Any) -> Preprocessing:
    """Return the preprocessing that the metadata holds.

    Raises:
        ValueError: no image can be prepared so.
    """
    missing = [key for key in ("size", "interpolation", "mean", "std") if content.get(key) is None]
    try:
        if missing:
            raise ValueError(f"it lacks {', '.join(missing)}")
        return checked_preprocessing(content)
    except ValueError as error:
        raise ValueError(f"'preprocessing' of its metadata is one which no image can be prepared with: {error}") from None


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
