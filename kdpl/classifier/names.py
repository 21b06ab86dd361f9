"""Class names that no prompt can tell apart are refused."""

from collections.abc import Sequence

from kdpl.text.prompts import encode


def refuse_doubles(names: Sequence[str], source: str) -> None:
    """Refuse class names that become the same tokens: "Ice_Hockey" and "ice hockey" would share their probability.

    Args:
        source: where the names are from, for the message.

    Raises:
        ValueError: two names are the same to the text tower; the message has both spellings.
    """
    first: dict[tuple[int, ...], str] = {}
    for name in names:
        tokens = tuple(encode(name.replace("_", " ")))
        if tokens in first:
            same = "twice" if first[tokens] == name else f"and '{first[tokens]}', which are the same words to CLIP"
            raise ValueError(f"{source} has '{name}' {same}: the two would share its probability. Remove one of them.")
        first[tokens] = name
