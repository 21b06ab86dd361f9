"""kdpl interpret: words near learned vectors, and classes that moved, for each variant what there is."""

import pytest
import torch
from support import untrained_bundle

from kdpl.classifier.classifier import load
from kdpl.classifier.words import context_words, moved_classes, nearest_words
from kdpl.interpret import main

NAMES = ["red apple", "pizza", "croissant"]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """A function that gives the folder of untrained prompts of a variant."""
    made = {}

    def bundle(variant, **options):
        key = variant, *options.items()
        if key not in made:
            made[key] = untrained_bundle(tmp_path_factory.mktemp(variant), variant, NAMES, **options)
        return made[key]

    return bundle


def test_untrained_context_reads_as_its_initial_words(bundles):
    rows = context_words(load(bundles("CoOp"), "cpu"), 2)
    assert [found[0] for found in rows] == [("a", 0), ("photo", 0), ("of", 0), ("a", 0)]
    assert all(found[1][1] > 0 for found in rows)


def test_the_nearest_words_are_those_of_a_direct_search():
    generator = torch.Generator().manual_seed(1)
    embedding, vectors = torch.randn(50, 8, generator=generator), torch.randn(3, 8, generator=generator)
    embedding[7] = 0  # a token that a packed model does not know
    found = nearest_words(vectors, embedding, 4)
    for vector, words in zip(vectors, found, strict=True):
        distances = [((vector - e) ** 2).sum().sqrt().item() for i, e in enumerate(embedding) if i != 7]
        assert [distance for _, distance in words] == pytest.approx(sorted(distances)[:4], rel=1e-5)


def test_classes_have_not_moved_before_training_and_those_that_did_come_first(bundles):
    classifier = load(bundles("CoOp"), "cpu")
    assert [cosine for _, cosine in moved_classes(classifier, "a photo of a {}.")] == pytest.approx([1, 1, 1], abs=1e-5)
    moved = moved_classes(classifier, "a photo of the hard to see {}.")
    assert sorted(name for name, _ in moved) == sorted(NAMES)
    assert moved == sorted(moved, key=lambda row: row[1]) and moved[-1][1] < 0.999


@pytest.mark.parametrize(
    ("variant", "options", "vectors", "moved"),
    [
        ("CoOp", {"CSC": True}, 12, True),
        ("CoCoOp", {}, 4, False),
        ("VPT", {"PROMPT_DEPTH_VISION": 2}, 0, False),
        ("MaPLe", {"PROMPT_DEPTH": 3}, 2, True),
    ],
)
def test_every_variant_shows_what_it_has(variant, options, vectors, moved, bundles, capsys):
    assert main([str(bundles(variant, **options)), "--top", "1", "--template", "an icon of a {}."]) == 0
    out = capsys.readouterr().out
    assert sum(line.strip().endswith(")") for line in out.splitlines()) == vectors
    assert ('learned against "an icon of a {}."' in out) == moved
