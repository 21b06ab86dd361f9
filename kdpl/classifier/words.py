"""Learned prompts in words, by the distance between token embeddings as in CoOp's table 4 (arXiv:2109.01134); moved classes."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kdpl.text.prompts import CLIPS_OWN, sentence_features
from kdpl.text.templates import fill

if TYPE_CHECKING:
    from kdpl.classifier.classifier import Classifier


def nearest_words(
    vectors: Tensor, embedding: Tensor, top: int, decode: Callable[[int], str] = CLIPS_OWN.decode
) -> list[list[tuple[str, float]]]:
    """Return the `top` words nearest to each vector, with their distances.

    Args:
        vectors: (n, w).
        embedding: the token embeddings (V, w); rows of zeros are no words.
        decode: the text of a token id.
    """
    ids = embedding.any(dim=1).nonzero().squeeze(1)
    words, nearest = embedding[ids].double(), []
    for some in vectors.double().split(64):  # bounds the memory of the distances to all words
        distances, indices = torch.cdist(some, words).topk(min(top, len(ids)), largest=False)  # (n, top)
        for row, tokens in zip(distances.tolist(), ids[indices].tolist(), strict=True):
            nearest.append([(decode(token), distance) for token, distance in zip(tokens, row, strict=True)])
    return nearest


def context_words(classifier: "Classifier", top: int) -> list[list[tuple[str, float]]]:
    """Return the words nearest to each context vector of the first text layer, class by class where each has its own."""
    ctx = next((v for name, v in classifier.bundle.parameters.items() if name.rpartition(".")[2] == "ctx"), None)
    if ctx is None:
        return []
    text, tokenizer = classifier.clip.text, classifier.clip.tokenizer
    rows = text.embed(torch.arange(text.vocabulary, device=classifier.device)).cpu()  # (V, w)
    rows[list(tokenizer.special)] = 0
    return nearest_words(ctx.reshape(-1, ctx.shape[-1]), rows, top, tokenizer.decode)


@torch.inference_mode()
def moved_classes(classifier: "Classifier", template: str) -> list[tuple[str, float]]:
    """Return all classes with the cosine between learned and hand-written text features, those that moved furthest first."""
    written = sentence_features(classifier.clip, fill(template, classifier.classnames)).cpu()  # (C, d)
    cosines = (classifier.text_features.float() * written).sum(dim=1).tolist()
    return sorted(zip(classifier.classnames, cosines, strict=True), key=lambda moved: moved[1])
