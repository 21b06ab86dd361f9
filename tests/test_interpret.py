"""python -m kdpl.interpret: words near learned vectors, and classes that moved, for each variant what there is."""

import csv

import pytest
import torch
from support import untrained_bundle

from kdpl.classifier.classifier import load
from kdpl.classifier.words import moved_classes, nearest_words, word_rows
from kdpl.common import exits
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
    rows = word_rows(load(bundles("CoOp"), "cpu"), 2)
    assert [(owner, k) for owner, k, _ in rows] == [("", 1), ("", 2), ("", 3), ("", 4)]
    assert [found[0] for *_, found in rows] == [("a", 0), ("photo", 0), ("of", 0), ("a", 0)]
    assert all(found[1].distance > 0 for *_, found in rows)


def test_the_nearest_words_are_those_of_a_direct_search():
    generator = torch.Generator().manual_seed(1)
    embedding, vectors = torch.randn(50, 8, generator=generator), torch.randn(3, 8, generator=generator)
    embedding[7] = 0  # a token that a packed model does not know
    found = nearest_words(vectors, embedding, 4)
    for vector, words in zip(vectors, found, strict=True):
        distances = [((vector - e) ** 2).sum().sqrt().item() for i, e in enumerate(embedding) if i != 7]
        assert [word.distance for word in words] == pytest.approx(sorted(distances)[:4], rel=1e-5)


def test_classes_have_not_moved_before_training_and_those_that_did_come_first(bundles):
    classifier = load(bundles("CoOp"), "cpu")
    assert [m.cosine for m in moved_classes(classifier, "a photo of a {}.")] == pytest.approx([1, 1, 1], abs=1e-5)
    moved = moved_classes(classifier, "a photo of the hard to see {}.")
    assert sorted(m.name for m in moved) == sorted(NAMES)
    assert moved == sorted(moved, key=lambda m: m.cosine) and moved[-1].cosine < 0.999


@pytest.mark.slow
def test_tables_csv_and_figure(bundles, tmp_path, capsys):
    outputs = ["--csv", str(tmp_path / "t.csv"), "--figure", str(tmp_path / "f.png")]
    assert main([str(bundles("CoOp")), "--top", "3", "--classes", "2", "--template", "an icon of a {}.", *outputs]) == 0
    out = capsys.readouterr().out
    assert "photo (0.000)" in out and 'learned against "an icon of a {}."' in out and "and 1 more" in out
    rows = list(csv.DictReader((tmp_path / "t.csv").open(encoding="utf-8", newline="")))
    assert len([r for r in rows if r["kind"] == "word"]) == 12
    assert sorted(r["class"] for r in rows if r["kind"] == "class") == sorted(NAMES)
    assert (tmp_path / "f.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("variant", "options", "note", "vectors", "moved"),
    [
        ("CoOp", {"CSC": True}, "", 12, True),
        ("CoCoOp", {}, "shifts the context by each image's feature", 4, False),
        ("VPT", {"PROMPT_DEPTH_VISION": 2}, "VPT learns no text context", 0, False),
        ("MaPLe", {"PROMPT_DEPTH": 3}, "2 deeper text layers have prompts too", 2, True),
        ("PromptSRC", {"PROMPT_DEPTH_TEXT": 2, "PROMPT_DEPTH_VISION": 2}, "1 deeper text layer has prompts too", 4, True),
    ],
)
def test_every_variant_tells_what_it_has_and_what_not(variant, options, note, vectors, moved, bundles, capsys):
    assert main([str(bundles(variant, **options)), "--top", "1"]) == 0
    out, err = capsys.readouterr()
    assert note in err and (not note or err.startswith("Note: "))
    assert sum(line.strip().endswith(")") for line in out.splitlines()) == vectors
    assert ("classes that moved most" in out) == moved


def test_prompts_without_class_names_show_their_words_and_ask_for_names(tmp_path, capsys):
    folder = untrained_bundle(tmp_path / "out", "CoOp", [])
    assert main([str(folder), "--top", "1"]) == 0
    out, err = capsys.readouterr()
    assert "photo (0.000)" in out and "moved" not in out and "give yours as --classnames FILE" in err
    (tmp_path / "names.txt").write_text("pizza\nsushi\n")
    assert main([str(folder), "--top", "1", "--classnames", str(tmp_path / "names.txt")]) == 0
    assert "classes that moved most" in capsys.readouterr().out


def test_what_cannot_work_is_refused(bundles, tmp_path, capsys):
    for flags, message in (
        (["--top", "0"], "--top is 0"),
        (["--template", "a photo"], "must hold one '{}'"),
        (["--csv", str(tmp_path)], "is a folder"),
        (["--figure", str(tmp_path / "figure.doc")], "'.doc' is not a figure format"),
    ):
        assert main([str(bundles("CoOp")), *flags]) == exits.BAD_INPUT
        assert message in capsys.readouterr().err
