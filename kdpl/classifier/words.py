"""Learned prompts in words: the words nearest to their vectors, and the classes that they moved.

Words are compared by the Euclidean distance between token embeddings, as in CoOp's table 4 (arXiv:2109.01134), classes by the
cosine between their text features with the learned prompt and with the hand-written one.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from kdpl.text.prompts import CLIPS_OWN, sentence_features
from kdpl.text.templates import fill

if TYPE_CHECKING:
    from kdpl.classifier.classifier import Classifier


class Word(NamedTuple):
    """A word of the vocabulary near a learned vector."""

    text: str
    distance: float


class Moved(NamedTuple):
    """A class, and the cosine between its text features by the learned and by the hand-written prompt."""

    name: str
    cosine: float


def nearest_words(
    vectors: Tensor, embedding: Tensor, top: int, decode: Callable[[int], str] = CLIPS_OWN.decode
) -> list[list[Word]]:
    """Return the `top` words nearest to each vector.

    Args:
        vectors: (n, w).
        embedding: the token embeddings (V, w); rows of zeros are no words.
        decode: the text of a token id.
    """
    ids = embedding.any(dim=1).nonzero().squeeze(1)
    words, found = embedding[ids].double(), []
    for some in vectors.double().split(64):  # bounds the memory of the distances to all words
        values, indices = torch.cdist(some, words).topk(min(top, len(ids)), largest=False)  # (n, top)
        for distances, nearest in zip(values.tolist(), ids[indices].tolist(), strict=True):
            found.append([Word(decode(i), d) for i, d in zip(nearest, distances, strict=True)])
    return found


def context_words(classifier: "Classifier", top: int) -> list[list[Word]]:
    """Return the words nearest to each context vector of the first text layer, class by class where each has its own."""
    ctx = next((v for name, v in classifier.bundle.parameters.items() if name.rpartition(".")[2] == "ctx"), None)
    if ctx is None:
        return []
    clip = classifier.clip
    rows = clip.text.embed(torch.arange(clip.text.vocabulary, device=clip.device)).cpu()  # (V, w)
    rows[list(clip.tokenizer.special)] = 0
    return nearest_words(ctx.reshape(-1, ctx.shape[-1]), rows, top, clip.tokenizer.decode)


@torch.inference_mode()
def moved_classes(classifier: "Classifier", template: str) -> list[Moved]:
    """Return all classes, the one that moved furthest from its hand-written sentence first."""
    learned = classifier.text_features  # (C, d)
    written = sentence_features(classifier.clip, fill(template, classifier.classnames)).cpu()  # (C, d)
    cosines = (learned.float() * written).sum(dim=1).tolist()
    return sorted(map(Moved, classifier.classnames, cosines), key=lambda m: m.cosine)
