"""Prompts as token sequences: class names with learned context, and plain sentences."""

from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from kdpl.clip.blocks import UnsupportedTowerError
from kdpl.clip.model import Clip
from kdpl.clip.openai import EOT, SOT, bpe
from kdpl.clip.prompt_layout import PromptLayout, slot
from kdpl.common.messages import did_you_mean

POSITIONS = ("end", "middle", "front")
SENTENCES_AT_ONCE = 1024  # bounds the memory for long lists
CACHED_PROMPTS = 2**17  # class-agnostic steps need the same names again; vocabularies rarely have more


def encode(text: str) -> list[int]:
    """Return the token ids of a text, without start and end.

    Raises:
        ValueError: the text contains CLIP's own start or end token, which would end the prompt early.
    """
    tokens = bpe().encode(text)
    if SOT in tokens or EOT in tokens:
        raise ValueError(f"'{text}' contains CLIP's start or end token: remove it from the class name.")
    return tokens


def context_prompts(names: Sequence[str], n_ctx: int, words: str = "", position: str = "end") -> list[tuple[int, ...]]:
    """Return the prompts `[SOT] [ctx_1..ctx_n] name . [EOT]` with slots for the learned vectors.

    Args:
        names: class names; underscores become spaces.
        n_ctx: number of learned vectors; they replace the first n_ctx tokens before the name.
        words: the words before the name, "a photo of a"; empty: n_ctx placeholders.
        position: of the name: "end" (after the context), "middle" (between its halves) or "front" (before it).

    Raises:
        ValueError: an empty name, or an unknown position.
    """
    if position not in POSITIONS:
        raise ValueError(
            f"CLASS_TOKEN_POSITION '{position}' is not one of {', '.join(POSITIONS)}.{did_you_mean(position, POSITIONS)}"
        )
    words = words.replace("_", " ") or " ".join(["X"] * n_ctx)
    return [_context_prompt(n.replace("_", " "), n_ctx, words, position) for n in names]


@lru_cache(maxsize=CACHED_PROMPTS)
def _context_prompt(name: str, n_ctx: int, words: str, position: str) -> tuple[int, ...]:
    if not name.strip():
        raise ValueError(f"Class name '{name}' is empty: give every class a name.")
    slots = [slot(i) for i in range(n_ctx)]
    half = {"end": n_ctx, "middle": n_ctx // 2, "front": 0}[position]  # slots before the name
    rest = encode(f"{words} {name}.")[n_ctx:]
    end = len(encode(name)) if position != "end" else 0
    return (SOT, *slots[:half], *rest[:end], *slots[half:], *rest[end:], EOT)


def check_names(names: Sequence[str]) -> None:
    """Refuse class names that no prompt can hold, and report those that have the same tokens.

    Raises:
        ValueError: a name is empty, or contains CLIP's own start or end token.
    """
    labels: dict[tuple[int, ...], int] = {}
    for label, name in enumerate(names):
        ids = tuple(encode(name.replace("_", " ")))
        if not ids:
            raise ValueError(f"The class name of label {label}, '{name}', is empty: give every class a name.")
        if labels.setdefault(ids, label) != label:
            print(f"Labels {labels[ids]} and {label} have the same class name, '{name}': no prompt can distinguish them")


def init_tokens(words: str) -> list[int]:
    """Return the token ids of the initial context words; underscores become spaces."""
    return encode(words.replace("_", " "))


@torch.no_grad()
def sentence_features(clip: Clip, sentences: Sequence[str], normalize: bool = True) -> Tensor:
    """Return the text features `(N, d)` of plain sentences, in fp32.

    A CLIP text tower is run by the text pass, any other tower by the model's `encode_text`.

    Raises:
        ValueError: a sentence is longer than the text tower's context.
    """
    features = []
    for start in range(0, len(sentences), SENTENCES_AT_ONCE):
        ids = clip.tokenize(list(sentences[start : start + SENTENCES_AT_ONCE]))  # (N, context_length)
        try:
            tower = clip.text
        except UnsupportedTowerError:
            features.append(clip.model.encode_text(ids.to(clip.device)).float())
            continue
        rows = [row[: row.index(EOT) + 1] for row in ids.tolist()]
        features.append(tower(PromptLayout(tower, rows)).float())
    features = torch.cat(features)
    return F.normalize(features, dim=-1) if normalize else features


@torch.no_grad()
def ensemble_features(clip: Clip, names: list[str], templates: Sequence[str], normalize: bool = True) -> Tensor:
    """Return the mean over templates of each name's text features, `(C, d)` in fp32, normalised.

    Args:
        normalize: normalise each template's feature before the mean; False: not, as for PromptSRC's regularisers
            (arXiv:2307.06948).
    """
    from kdpl.text.templates import fill

    total = sum(sentence_features(clip, fill(template, names), normalize) for template in templates)
    return F.normalize(total / len(templates), dim=-1)
