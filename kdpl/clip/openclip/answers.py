"""Answers of a Hugging Face hub that are used as names of files: the client writes what they say, wherever that is."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")  # of git, or SHA-256


class AnswerError(OSError):
    """A hub has answered with what no hub answers."""


def check_answer(answer: Any, asked: str) -> Any:
    """Return the answer about a file, unless its ETag or its commit are no digests.

    Args:
        answer: of `huggingface_hub.get_hf_file_metadata`.
        asked: its address, for the message.

    Raises:
        AnswerError: the message names the value.
    """
    for what, value in (("ETag", answer.etag), ("commit", answer.commit_hash)):
        if not isinstance(value, str) or not _DIGEST.fullmatch(value):
            raise AnswerError(
                f"'{asked}' was answered with the {what} {str(value)[:80]!r}, expected a digest: nothing was downloaded. "
                "Is this the Hugging Face hub (HF_ENDPOINT)?"
            )
    return answer


@contextmanager
def checked_answers() -> Iterator[None]:
    """Check every answer that the hub's client gets while it downloads; it asks again by itself.

    Raises:
        AnswerError: as `check_answer`.
    """
    from huggingface_hub import file_download

    ask = file_download.get_hf_file_metadata

    def checked(*args: Any, **kwargs: Any) -> Any:
        return check_answer(ask(*args, **kwargs), str(kwargs.get("url") or args[0]))

    file_download.get_hf_file_metadata = checked
    try:
        yield
    finally:
        file_download.get_hf_file_metadata = ask
