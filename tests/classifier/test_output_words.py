"""What is printed and written says what is so: what predicts, what was known, differences of nothing, one seed."""

import dataclasses
import json
import re

import pytest
import torch
from PIL import Image
from support import untrained_bundle
from support.trainings import build

from kdpl.bundle import Decision, read_bundle, write_bundle
from kdpl.classifier.serve import SHARED
from kdpl.clip.loading import load_clip
from kdpl.common import exits
from kdpl.common.messages import signed
from kdpl.datasets.emoji.scenes import draw, scenes_of
from kdpl.experiments.report.cells import Cell
from kdpl.photos.fit import main as fit
from kdpl.predict import main
from kdpl.text.prompts import same_names, sentence_features

NAMES = ["red apple", "pizza", "croissant"]


def heading(page):
    (line,) = [line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith('{"title"')]
    return json.loads(line)["title"]


def test_the_gallery_names_what_predicts(tmp_path):
    prompts = untrained_bundle(tmp_path / "out", "CoOp", NAMES)
    bundle = read_bundle(prompts)
    Image.new("RGB", (64, 64)).save(tmp_path / "photo.png")
    for sentences, expected in (([], f"prompts of {bundle.trainer}"), (["a {}."], "hand-written sentences")):
        decision = Decision(sentences=sentences, classnames=NAMES)
        write_bundle(prompts, dataclasses.replace(bundle, decision=decision))
        assert main([str(prompts), str(tmp_path / "photo.png"), "--html", str(tmp_path / "g.html")]) == 0
        assert heading(tmp_path / "g.html") == f"{bundle.backbone}, {expected}"


def test_nothing_was_known_on_a_first_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("KDPL_CACHE", str(tmp_path / "cache"))
    prompts, photos = untrained_bundle(tmp_path / "out", "CoOp", NAMES), tmp_path / "photos"
    photos.mkdir()
    for i, scene in enumerate(draw(scenes_of("meals")[:9])):
        Image.fromarray(scene).resize((256, 256)).save(photos / f"{i}.jpg")
    for known in (False, True):
        assert main([str(prompts), str(photos), "--csv", str(tmp_path / "p.csv")]) == 0
        err = capsys.readouterr().err
        assert ("9 of them were known" in err) == known and ("were known" in err) == known


@pytest.mark.parametrize(
    ("value", "text"), [(-0.004, "+0.00"), (-0.0, "+0.00"), (0.0, "+0.00"), (-0.006, "-0.01"), (1, "+1.00")]
)
def test_a_difference_of_nothing_has_no_minus(value, text):
    assert signed(value, 2) == text
    assert Cell({1: float(value)}).text([1], signed=True) == text


def test_a_name_and_its_probability_stand_apart(browser):
    page = browser.new_page()
    style, script = (SHARED.joinpath(name).read_text(encoding="utf-8") for name in ("parts.css", "parts.js"))
    page.set_content(f"<style>{style}</style><ol class='names' style='width: 20rem'></ol>")
    page.add_script_tag(content=f"{script}; document.querySelector('ol').append(...ranked([['apple', .75]]))", type="module")
    left, right = page.evaluate(
        "[...document.querySelector('li').children].map(e => e.getBoundingClientRect()).map(r => [r.left, r.right])"
    )
    assert right[0] - left[1] > 8, "pixels between the name and its probability"
    assert page.locator("li").first.text_content() == "apple75.0%"
    page.close()


SAME = ["giraffe", "zebra", "chair", "pizza", "banana"]  # the embedded models know the last two


def test_words_that_a_clip_does_not_know_are_named_in_training_and_prediction(tmp_path, capsys):
    prompts = untrained_bundle(tmp_path / "out", "CoOp", SAME)
    Image.new("RGB", (64, 64)).save(tmp_path / "photo.png")
    assert main([str(prompts), str(tmp_path / "photo.png"), "--csv", str(tmp_path / "p.csv")]) == 0
    expected = r"Warning: To 'emoji_student' these names are the same, .*: 'giraffe', 'zebra', 'chair'\. Use other words"
    assert re.search(expected, capsys.readouterr().err)
    photos = tmp_path / "photos"
    photos.mkdir()
    for i, scene in enumerate(draw(scenes_of("meals")[:4])):
        Image.fromarray(scene).save(photos / f"{i}.png")
    (tmp_path / "names.txt").write_text("\n".join(SAME))
    folder = ("DATASET.ROOT", photos, "DATASET.CLASSNAMES", tmp_path / "names.txt", "DATASET.NUM_SHOTS", -1)
    own = ("DATASET.NAME", "ImageFolder", "DATASET.SUBSAMPLE_CLASSES", "all", "TEST.NO_TEST", True)
    run = build("KDPL_CoOp", tmp_path / "run", *folder, *own)
    run.load_for_training()
    out = capsys.readouterr().out
    assert re.search(expected, out) and re.search(expected.replace("emoji_student", "emoji_teacher"), out)


def test_names_that_differ_are_not_warned_of():
    features = sentence_features(load_clip("emoji_student"), [f"a photo of a {name}." for name in SAME])
    first = ", ".join(f"'{name}'" for name in SAME[:3])
    assert f"(it may not know their words): {first}. Use" in same_names(SAME, features, "x")
    assert same_names(SAME[2:], features[2:], "x") == ""
    doubled = torch.cat([features, features[3:]])
    assert f"{first}; 'pizza', 'pie'; 'banana', 'plantain'. Use" in same_names([*SAME, "pie", "plantain"], doubled, "x")


def test_a_fit_of_names_that_are_the_same_to_the_teacher_is_refused(tmp_path, capsys):
    photos = tmp_path / "photos"
    photos.mkdir()
    for i, scene in enumerate(draw(scenes_of("meals")[:8])):
        Image.fromarray(scene).save(photos / f"{i}.png")
    (tmp_path / "names.txt").write_text("\n".join(SAME))
    models = ["--student", "emoji_student", "--teacher", "emoji_teacher", "--quiet"]
    assert fit([str(photos), str(tmp_path / "names.txt"), "-o", str(tmp_path / "out"), *models]) == exits.BAD_INPUT
    assert "To 'emoji_teacher' these names are the same" in capsys.readouterr().err
    assert not (tmp_path / "out/prompts.safetensors").exists()
