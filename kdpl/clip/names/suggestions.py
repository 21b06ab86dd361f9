"""What to write in place of a name that is none: the right form of what was asked for, and never other weights."""

import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path

from kdpl.clip.names.folders import SUFFIXES

CLOSE = 0.85  # of the similarity of a mistyped name
OPENAI_REPOSITORIES = {
    "ViT-B/32": "openai/clip-vit-base-patch32",
    "ViT-B/16": "openai/clip-vit-base-patch16",
    "ViT-L/14": "openai/clip-vit-large-patch14",
    "ViT-L/14@336px": "openai/clip-vit-large-patch14-336",
}
_SIZES = re.compile(r"\d+|(?<![a-zA-Z])[a-zA-Z](?![a-zA-Z])")
_REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def for_model(name: str, known: Sequence[str]) -> str:
    """Return what to do about a name of no known architecture, as the end of a message; empty if there is none.

    Args:
        known: names of models without tags.
    """
    prefix, _, rest = name.partition(":")
    if prefix == "local-dir":
        return f" Write the folder itself: '{rest}'."
    if prefix in ("hf-hub", "hf_hub"):
        return _for_repository(rest)
    if name.startswith(("/", ".", "~")) or name.endswith(SUFFIXES):
        return " There is no such file or folder."
    if close := _closest(prefix, _with_tag(rest, known), "another model"):
        return close
    return _for_repository(name) if _REPOSITORY.fullmatch(name) else ""


def for_tag(architecture: str, asked: str, tags: Sequence[str]) -> str:
    """Return the same for a tag or a file that an architecture does not have."""
    import open_clip

    begun = [tag for tag in tags if len(asked) > 2 and asked.casefold() in tag.casefold()]
    if len(begun) > 1:
        return " Which of them: " + ", ".join(f"'{architecture}:{tag}'" for tag in begun) + "?"
    if begun:
        return f" Did you mean '{begun[0]}'? Write '{architecture}:{begun[0]}'."
    if others := [model for model, tag in open_clip.list_pretrained() if tag == asked]:
        return f" These are weights of {', '.join(others)}: write '{others[0]}:{asked}'."
    return _closest(asked, tags, "other weights")


def _closest(asked: str, names: Sequence[str], other: str) -> str:
    """Return the closest name, as what was meant if sizes and versions agree: 'ViT-B-64' is no misspelt 'ViT-B-16'."""
    found = get_close_matches(asked.casefold(), [name.casefold() for name in names], n=1, cutoff=CLOSE)
    close = next((name for name in names if name.casefold() in found), "")
    if close and _sizes(asked) == _sizes(close):
        return f" Did you mean '{close}'?"
    return f" The closest name, '{close}', is that of {other}: kdpl models lists all." if close else ""


def _sizes(name: str) -> list[str]:
    """Return numbers and single letters; of these g and G are two sizes."""
    return [part if part == "G" else part.casefold() for part in _SIZES.findall(name)]


def _with_tag(tag: str, known: Iterable[str]) -> list[str]:
    """Return the models that have weights of a tag; all if no published one is asked for."""
    import open_clip

    models = {model for model, other in open_clip.list_pretrained() if other == tag}
    return [model for model in known if not models or model in models]


def _for_repository(repository: str) -> str:
    """Return how the weights in a repository of the Hugging Face hub are named here."""
    import open_clip
    from huggingface_hub import constants

    repository = repository.partition("@")[0].strip("/")
    for model, theirs in OPENAI_REPOSITORIES.items():
        if theirs == repository:
            return f" These are OpenAI's weights: write '{model}'."
    for model, tag in open_clip.list_pretrained():
        hub = (open_clip.get_pretrained_cfg(model, tag).get("hf_hub") or "").split("/")
        if "/".join(hub[:2]) == repository:
            return f" open_clip has these weights: write '{model}:{tag}'."
    folder = Path(constants.HF_HUB_CACHE, f"models--{repository.replace('/', '--')}")
    if folder.is_dir():
        return f" The repository is in the cache: write its folder, '{folder}'."
    return f" For a repository of the Hugging Face hub run `hf download {repository}`, and write the folder '{folder}'."
