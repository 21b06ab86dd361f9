"""What learned prompts say: the words nearest to their vectors, and the classes that they moved.

For each learned context vector the nearest words of CLIP's vocabulary, by Euclidean distance between token embeddings, as
CoOp's table has them (arXiv:2109.01134, table 4); a vector much further from all words than words are from each other says
nothing in words. And for each class the cosine between its text feature with the learned prompt and with the hand-written one:
those that moved most come first.
"""

import csv
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import torch
from tabulate import tabulate
from torch import Tensor

from kdpl.common.files import atomic_write
from kdpl.common.safe_text import to_cell
from kdpl.text.prompts import CLIPS_OWN, sentence_features
from kdpl.text.templates import fill

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from kdpl.classifier.classifier import Classifier

VECTORS_AT_ONCE = 64  # bounds the memory of the distances to all words
WORDS_ASKED = 128
CLASSES_IN_FIGURE = 30
FORMATS = (".png", ".pdf", ".svg")


class Word(NamedTuple):
    """A word of the vocabulary near a learned vector."""

    text: str
    distance: float


class Moved(NamedTuple):
    """A class, and the cosine between its text features by the learned and by the hand-written prompt."""

    name: str
    cosine: float


def context(classifier: "Classifier") -> Tensor | None:
    """Return the context vectors that enter the first text layer: (n, w), or (C, n, w) where every class has its own; None
    where the text is not learned (VPT)."""
    named = {name.rpartition(".")[2]: value for name, value in classifier.bundle.parameters.items()}
    return named.get("ctx")


def words_apart(embedding: Tensor) -> float:
    """Return how far a word is from the nearest other one: the median over `WORDS_ASKED` of the embeddings (V, w)."""
    words = embedding[_is_word(embedding)].double()
    some = words[:: max(1, len(words) // WORDS_ASKED)][:WORDS_ASKED]
    return torch.cdist(some, words).topk(2, largest=False).values[:, 1].median().item()  # the nearest is the word itself


def _is_word(embedding: Tensor) -> Tensor:
    return embedding.any(dim=1)  # a packed model has rows of zeros for tokens that it does not know


def nearest_words(
    vectors: Tensor, embedding: Tensor, top: int, decode: Callable[[int], str] = CLIPS_OWN.decode
) -> list[list[Word]]:
    """Return the `top` words nearest to each vector.

    Args:
        vectors: (n, w).
        embedding: the token embeddings (V, w); rows of zeros are no words.
        decode: the text of a token id.
    """
    ids = _is_word(embedding).nonzero().squeeze(1)
    words, found = embedding[ids].double(), []
    for some in vectors.double().split(VECTORS_AT_ONCE):
        distances = torch.cdist(some, words)  # (n, V)
        values, indices = distances.topk(min(top, len(ids)), largest=False)
        for row_values, row_ids in zip(values.tolist(), ids[indices].tolist(), strict=True):
            found.append([Word(decode(i), d) for i, d in zip(row_ids, row_values, strict=True)])
    return found


@torch.inference_mode()
def moved_classes(classifier: "Classifier", template: str) -> list[Moved]:
    """Return all classes, the one that moved furthest from its hand-written sentence first."""
    learned = classifier.text_features  # (C, d)
    written = sentence_features(classifier.clip, fill(template, classifier.classnames)).cpu()  # (C, d)
    cosines = (learned.float() * written).sum(dim=1).tolist()
    return sorted(map(Moved, classifier.classnames, cosines), key=lambda m: m.cosine)


def notes(classifier: "Classifier") -> Iterator[str]:
    """Give, in sentences, what the tables leave out for this variant."""
    student, parameters = classifier.student, classifier.bundle.parameters
    names = [name for name in parameters if "ctx" not in name.split(".")]
    if context(classifier) is None and student.class_specific:
        what = f"{classifier.bundle.variant} learns {student.learned_for_each} for each class"
        yield f"{what}, behind the text tower, where there are no words."
    elif context(classifier) is None:
        yield (
            f"{classifier.bundle.variant} learns no text context: its text is written by hand, so that there are no words to "
            "find and no class has moved."
        )
    if student.text_depends_on_images:
        yield (
            "A small net shifts the context by each image's feature: the words are those of the context before the shift, "
            "and classes have no text features without an image."
        )
    if not classifier.classnames:
        yield "The prompts were learned without class names: give yours as --classnames FILE to see which classes moved."
    if deep := [n for n in names if "compound_prompts_text" in n or n.startswith("text_encoder.")]:
        layers = "1 deeper text layer has" if len(deep) == 1 else f"{len(deep)} deeper text layers have"
        yield f"{layers} prompts too, which lie among hidden states, where there are no words."
    if any(n.startswith("image_encoder.") or ".proj" in n or "compound_prompt_projections" in n for n in names):
        yield "The visual prompts lie among patches of images, where there are no words."


def embeddings(classifier: "Classifier") -> Tensor:
    """Return CLIP's token embeddings (V, w), with zeros for what stands for no text."""
    clip = classifier.clip
    rows = clip.text.embed(torch.arange(clip.text.vocabulary, device=clip.device)).cpu()
    rows[list(clip.tokenizer.special)] = 0
    return rows


def word_rows(classifier: "Classifier", top: int) -> list[tuple[str, int, list[Word]]]:
    """Return class (empty where all share the context), number of the vector from 1, and its words."""
    vectors = context(classifier)
    if vectors is None:
        return []
    owners = [""] if vectors.dim() == 2 else classifier.bundle.classnames
    words = nearest_words(vectors.reshape(-1, vectors.shape[-1]), embeddings(classifier), top, classifier.clip.tokenizer.decode)
    places = [(owner, k) for owner in owners for k in range(1, vectors.shape[-2] + 1)]
    return [(owner, k, found) for (owner, k), found in zip(places, words, strict=True)]


def print_tables(words: list[tuple[str, int, list[Word]]], moved: list[Moved], apart: float, template: str, shown: int) -> None:
    if words:
        specific = any(owner for owner, *_ in words)
        rows = [
            [*([owner] if specific else []), k, *(f"{word.text} ({word.distance:.3f})" for word in found)]
            for owner, k, found in words
        ]
        print(
            f"Nearest words of each context vector, with their distances; a word's nearest other one is at {apart:.3f}",
            end="\n\n",
        )
        nearest = ["nearest", *map(str, range(2, len(words[0][2]) + 1))]
        print(tabulate(rows, [*(["class"] if specific else []), "vector", *nearest], disable_numparse=True))
    if moved:
        print("", f'Cosine of the text features, learned against "{template}": the classes that moved most', "", sep="\n")
        print(tabulate(moved[:shown], ["class", "cosine"], floatfmt=".3f", disable_numparse=[0]))
        if len(moved) > shown:
            print(f"... and {len(moved) - shown:,} more, of cosine {moved[shown].cosine:.3f} to {moved[-1].cosine:.3f}")


def write_csv(path: str, words: list[tuple[str, int, list[Word]]], moved: list[Moved]) -> None:
    with atomic_write(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["kind", "class", "vector", "rank", "word", "distance", "cosine"])
        for owner, k, found in words:
            for rank, word in enumerate(found, 1):
                writer.writerow(["word", to_cell(owner), k, rank, to_cell(word.text), f"{word.distance:.6f}", ""])
        for rank, (name, cosine) in enumerate(moved, 1):
            writer.writerow(["class", to_cell(name), "", rank, "", "", f"{cosine:.6f}"])


def draw(words: list[tuple[str, int, list[Word]]], moved: list[Moved], template: str) -> "Figure":
    """Draw the distances of the words, class-specific contexts left out, and the classes that moved most."""
    from matplotlib.figure import Figure

    shared = [(k, found) for owner, k, found in words if not owner]
    classes = moved[:CLASSES_IN_FIGURE]
    lines = [len(part) for part in ([f for _, found in shared for f in found], classes) if part]
    figure = Figure(figsize=(7, 1.2 * len(lines) + 0.22 * sum(lines)), layout="constrained")
    panels = iter(figure.subplots(len(lines), squeeze=False, height_ratios=lines)[:, 0])
    if shared:
        bars = [(f"{k}: {word.text}", word.distance, f"C{k - 1}") for k, found in shared for word in found]
        _bars(next(panels), bars, "Words nearest to each context vector", "Euclidean distance")
    if classes:
        bars = [(name, cosine, "C0") for name, cosine in classes]
        _bars(next(panels), bars, "Classes that moved most", f'cosine of text features, learned against "{template}"')
    return figure


def _bars(panel, bars: list[tuple[str, float, str]], title: str, axis: str) -> None:
    labels, values, colours = zip(*bars, strict=True)
    labels = [label if len(label) <= 40 else f"{label[:39]}…" for label in labels]
    panel.barh(range(len(bars)), values, color=colours)
    panel.set_yticks(range(len(bars)), labels, fontsize=8, parse_math=False)
    panel.set_ylim(len(bars) - 0.4, -0.6)
    panel.set_xlim(min(0.0, *values), 1.08 * max(values))
    panel.bar_label(panel.containers[0], fmt="%.3f", padding=2, fontsize=7)
    panel.set_title(title, fontsize=10)
    panel.set_xlabel(axis, fontsize=8, parse_math=False)
