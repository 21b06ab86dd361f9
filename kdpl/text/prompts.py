"""Prompts as token sequences: class names with learned context, and plain sentences."""

from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from kdpl.clip.model import Clip
from kdpl.clip.preprocessing import BytePairs, Tokenizer
from kdpl.clip.prompt_layout import slot
from kdpl.clip.text_tower import TextTower
from kdpl.common import distributed
from kdpl.config.keys import CLASS_TOKEN_POSITIONS, check_choice
from kdpl.text.templates import fill

SENTENCES_AT_ONCE = 1024  # bounds the memory for long lists
SAME = 1 - 1e-5  # the least cosine of names that are the same; those of a word and its plural are below 0.999
CACHED_PROMPTS = 2**17  # class-agnostic steps need the same names again; vocabularies rarely have more
CLIPS_OWN = BytePairs()


def encode(text: str, tokenizer: Tokenizer = CLIPS_OWN) -> list[int]:
    """Return the token ids of a text, without start and end.

    Raises:
        ValueError: the text contains the tokenizer's own start or end token, which would end the prompt early.
    """
    tokens = tokenizer.encode(text)
    if not tokenizer.special.isdisjoint(tokens):
        raise ValueError(f"'{text}' contains CLIP's start or end token: remove it from the class name.")
    return tokens


def context_prompts(
    names: Sequence[str],
    n_ctx: int,
    words: str = "",
    position: str = "end",
    tokenizer: Tokenizer = CLIPS_OWN,
    behind: str = ".",
) -> list[tuple[int, ...]]:
    """Return the prompts `[SOT] [ctx_1..ctx_n] name . [EOT]` with slots where learned vectors go.

    Args:
        names: class names; underscores become spaces.
        n_ctx: number of learned vectors; they replace the first n_ctx tokens before the name.
        words: the words before the name, "a photo of a"; empty: n_ctx placeholders.
        position: of the name: "end" (after the context), "middle" (between its halves) or "front" (before it).
        tokenizer: of the CLIP that will read them.
        behind: what stands behind the name in place of the full stop.

    Raises:
        ValueError: an empty name, or an unknown position.
    """
    check_choice("CLASS_TOKEN_POSITION", position, CLASS_TOKEN_POSITIONS)
    words = words.replace("_", " ")
    return [_context_prompt(n.replace("_", " "), n_ctx, words, position, tokenizer, behind) for n in names]


@lru_cache(maxsize=CACHED_PROMPTS)
def _context_prompt(name: str, n_ctx: int, words: str, position: str, tokenizer: Tokenizer, behind: str) -> tuple[int, ...]:
    if not name.strip():
        raise ValueError(f"Class name '{name}' is empty: give every class a name.")
    slots = [slot(i) for i in range(n_ctx)]
    half = {"end": n_ctx, "middle": n_ctx // 2, "front": 0}[position]  # of the slots stand before the name
    # The name is encoded behind words, since some tokenizers have other ids for a word at the beginning.
    before = words or " ".join(["X"] * n_ctx)
    taken = n_ctx if words else len(encode(before, tokenizer))
    rest = encode(f"{before} {name}{behind}", tokenizer)[taken:]
    end = len(encode(f"{before} {name}", tokenizer)) - len(encode(before, tokenizer)) if position != "end" else 0
    return (*tokenizer.sot, *slots[:half], *rest[:end], *slots[half:], *rest[end:], *tokenizer.eot)


def check_names(names: Sequence[str]) -> None:
    """Refuse class names that no prompt can hold.

    Raises:
        ValueError: a name is empty, or contains CLIP's own start or end token.
    """
    for label, name in enumerate(names):
        if not encode(name.replace("_", " ")):
            raise ValueError(f"The class name of label {label}, '{name}', is empty: give every class a name.")


@torch.no_grad()
def sentence_features(clip: Clip, sentences: Sequence[str], normalize: bool = True) -> Tensor:
    """Return the text features `(N, d)` of plain sentences, in fp32.

    A causal text tower is run by the text pass, any other by the model's `encode_text`.

    Raises:
        ValueError: a sentence is longer than the text tower's context.
    """
    features, tower = [], clip.text
    for start in range(0, len(sentences), SENTENCES_AT_ONCE):
        ids = clip.tokenizer(list(sentences[start : start + SENTENCES_AT_ONCE]))  # (N, context_length)
        if not isinstance(tower, TextTower):
            features.append(clip.encode_text(ids.to(clip.device)).float())
            continue
        eot = clip.tokenizer.eot[-1]
        rows = [row[: row.index(eot) + 1] for row in ids.tolist()]
        features.append(tower(clip.layout(rows)).float())
    features = torch.cat(features)
    return F.normalize(features, dim=-1) if normalize else features


def template_features(clip: Clip, names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Return the normalised text features `(C, d)` of names in a sentence, or the mean over several: CLIP's ensembling."""
    return ensemble_features(clip, names, templates, normalize=len(templates) > 1)


@torch.no_grad()
def ensemble_features(clip: Clip, names: Sequence[str], templates: Sequence[str], normalize: bool = True) -> Tensor:
    """Return the mean over templates of each name's text features, `(C, d)` in fp32, normalised.

    Args:
        normalize: normalise each template's feature before the mean; False: not, as for PromptSRC's regularisers
            (arXiv:2307.06948).
    """
    total = sum(sentence_features(clip, fill(template, names), normalize) for template in templates)
    return F.normalize(total / len(templates), dim=-1)


@torch.no_grad()
def same_names(names: Sequence[str], features: Tensor, clip: str) -> str:
    """Return a sentence about names that a CLIP cannot tell apart by their text features `(C, d)`; empty if there are none.

    A packed CLIP knows some words alone, and any text tower cuts or drops something. Comparing tokens does not show that.
    """
    groups: dict[int, list[str]] = {}
    for start in range(0, len(names), SENTENCES_AT_ONCE):
        same = features[start : start + SENTENCES_AT_ONCE].float() @ features.float().T > SAME  # (n, C)
        for row, first in enumerate(same.byte().argmax(1).tolist(), start):  # of equal values the first
            groups.setdefault(first, []).append(names[row])
    same = [group for group in groups.values() if len(group) > 1]
    if not same:
        return ""
    shown = "; ".join(", ".join(f"'{name}'" for name in group[:5]) for group in same[:3])
    more = ", ..." if len(same) > 3 or max(map(len, same)) > 5 else ""
    return (
        f"To '{clip}' these names are the same, so that nothing can tell them apart (it may not know their words): "
        f"{shown}{more}. Use other words for them, or another CLIP."
    )


def warn_of_same_names(names: Sequence[str], features: Tensor, clip: str) -> None:
    """Print, on the main rank, which class names have the same text features `(C, d)` in a CLIP."""
    if distributed.is_main() and (line := same_names(names, features, clip)):
        print(f"Warning: {line}")
