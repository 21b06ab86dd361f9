"""kdpl fit, names and eval: from photos to a decision that says whether learning helped, and what of it can be trusted."""

import contextlib
import csv
import dataclasses
import io
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import ROOT, image_file, mostly_slow, processes

import kdpl
from kdpl.bundle import BundleError, read_bundle
from kdpl.bundle.decision import REJECTED, Decision, inside_score
from kdpl.classifier.classifier import Classifier
from kdpl.classifier.gallery.page import DATA_BEGINS
from kdpl.common import exits
from kdpl.common.rows.digests import file_digest
from kdpl.datasets.emoji.scenes import class_names, draw, scenes_of
from kdpl.distill.teacher import Teacher
from kdpl.photos import waiting
from kdpl.photos.demo import write_scenes
from kdpl.photos.evaluate import main as evaluate
from kdpl.photos.evaluate import wilson
from kdpl.photos.fit import main as fit
from kdpl.photos.fitting import candidates, run
from kdpl.photos.fitting.calibrate import background_names, fit_temperature, fit_threshold
from kdpl.photos.fitting.compare import CHOSEN_BY, REPORTED, Measured, Row, compare, verdict
from kdpl.photos.fitting.features import Pace, Pass
from kdpl.photos.fitting.plan import split
from kdpl.photos.fitting.train import Bar
from kdpl.photos.labels import read_labels
from kdpl.photos.models import MINUTES, device_type
from kdpl.photos.names import main as names_main
from kdpl.photos.waiting import Doing
from kdpl.predict import main as predict

pytestmark = pytest.mark.slow

NAMES = class_names("leisure")[:12]
EMBEDDED = ["--student", "emoji_student", "--teacher", "emoji_teacher", "--quiet"]
SENTENCE = ["--sentence", "an icon of a {}."]
SHORT = tuple(dataclasses.replace(c, steps=40) for c in candidates.FOR_NAMES)
COMMAND = """
import dataclasses, runpy
from kdpl.photos.fitting import candidates, run
run.TRAINING_LEAST = 1e9
candidates.FOR_NAMES = tuple(dataclasses.replace(c, steps=40) for c in candidates.FOR_NAMES)
runpy.run_module("kdpl", run_name="__main__", alter_sys=True)
"""


@pytest.fixture(scope="module", autouse=True)
def _few_steps():
    with pytest.MonkeyPatch.context() as context:
        context.setattr(candidates, "FOR_NAMES", SHORT)
        context.setattr(candidates, "FOR_ONE_NAME", (dataclasses.replace(candidates.FOR_ONE_NAME[0], steps=10),))
        context.setattr("kdpl.photos.fitting.run.TRAINING_LEAST", 1e9)  # whatever else this machine does
        yield


def write_photos(folder, dataset, classes, split):
    """Write the scenes of the first classes in a split; return their classes by path."""
    return write_scenes(folder, [s for s in scenes_of(dataset) if s.split == split and s.label < classes])


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fit")
    write_photos(folder / "photos", "leisure", 12, "train")
    (folder / "photos" / "broken.jpg").write_bytes(b"no image")
    (folder / "photos" / "film.MOV").touch()
    (folder / "photos" / "test").mkdir()  # a name that means nothing here
    image_file(folder / "photos" / "test" / "x.png")
    (folder / "names.txt").write_text("\n".join(NAMES), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def fitted(photos):
    """The output folder of a fit, and what it printed."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        status = fit([str(photos / "photos"), str(photos / "names.txt"), "-o", str(photos / "out"), *EMBEDDED, *SENTENCE])
    assert status == exits.SOME_UNREAD
    return photos / "out", out.getvalue()


def parts_of(folder):
    return json.loads((folder / "photos.json").read_text(encoding="utf-8"))


def test_a_fit_says_whether_it_helped_and_uses_the_best(fitted):
    folder, printed = fitted
    bundle = read_bundle(folder)
    rows, (used,) = bundle.comparison["rows"], [r for r in bundle.comparison["rows"] if r["used"]]
    labels = [row["prompts"] for row in rows]
    assert labels[0] == '"a photo of a {}."' and '"an icon of a {}." (yours)' in labels
    assert labels[-3:] == ["class vectors", "class-specific prompts", "shared prompts"]
    assert any(re.match(r"mean of \d+ sentences", label) for label in labels)
    assert used["to choose"] == max(row["to choose"] for row in rows)
    assert (used["prompts"] in labels[-3:]) == (not bundle.decision.sentences)
    for row in rows:
        assert f"{row['agreement']:.1f} ± {row['error']:.1f}" in printed
    card = (folder / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "## Agreement with the teacher" in card and f"| {used['agreement']:.1f} ± {used['error']:.1f} |" in card
    assert bundle.comparison["verdict"].split("(")[0] in " ".join(printed.split())
    assert f"agreement {rows[0]['agreement']:.1f} -> {used['agreement']:.1f} %" in bundle.comparison["verdict"]
    assert "1 .MOV" in printed and "emoji_teacher (7 MB, here already)" in printed
    parts = parts_of(folder)
    train, chosen_by, reported = (set(parts[name]) for name in ("train", CHOSEN_BY, REPORTED))
    assert not train & chosen_by and not train & reported and not chosen_by & reported
    assert len(reported) == bundle.comparison["photos"] and "test/x.png" in train | chosen_by | reported
    for learned in ("TaskRes", "CSC", "CoOp"):
        assert set(json.loads((folder / "learned" / learned / "photos.json").read_text())) <= train


def test_the_agreement_is_that_of_an_independent_computation(fitted, photos):
    from kdpl.clip.inputs import Normalize
    from kdpl.clip.loading import load_clip
    from kdpl.distill.teacher import Teacher

    folder, _ = fitted
    clip, rows = load_clip("emoji_teacher"), read_bundle(folder).comparison["rows"]
    for part, column in ((REPORTED, "agreement"), (CHOSEN_BY, "to choose")):
        paths = [str(photos / "photos" / name) for name in parts_of(folder)[part]]
        for learned, row in zip(("TaskRes", "CSC", "CoOp"), rows[-3:], strict=True):
            classifier = kdpl.load(folder / "learned" / learned, "cpu")
            pre = classifier.bundle.preprocessing
            teacher = Teacher(clip, NAMES, "a photo of a {}.", pre.mean, pre.std)
            pixels = torch.stack([item.pixels for b in classifier.decoder.batches(paths, 64) for item in b])
            truth = (teacher.image_features(Normalize(pre.mean, pre.std)(pixels)) @ teacher.text_features.T).argmax(1)
            share = float((classifier(paths).argmax(1) == truth).float().mean())
            assert row[column] == pytest.approx(100 * share, abs=0.01)
        used = next(row for row in rows if row["used"])
        share = float((kdpl.load(folder)(paths).argmax(1) == truth).float().mean())
        assert used[column] == pytest.approx(100 * share, abs=0.01)


def test_the_same_command_again_gives_the_same_and_another_fit_is_refused(fitted, photos, capsys, monkeypatch):
    folder, _ = fitted
    before = (folder / "prompts.safetensors").read_bytes()
    command = [str(photos / "photos"), str(photos / "names.txt"), "-o", str(folder), *EMBEDDED, *SENTENCE]
    with monkeypatch.context() as context:  # every feature is found
        context.setattr("kdpl.clip.model.Clip.frozen_image_features", None)
        context.setattr("kdpl.distill.teacher.Teacher.image_features", None)
        assert fit(command) == exits.SOME_UNREAD
    assert (folder / "prompts.safetensors").read_bytes() == before
    files = {p for p in folder.rglob("*") if p.is_file()}
    for flags, message in (
        (["--template", "an icon of a {}."], "--template: 'a photo of a {}.' there, 'an icon of a {}.' here"),
        (["--quick"], "--quick, --best: 'normal' there, 'quick' here"),
        (["--minutes", "7"], f"--minutes: '{MINUTES[device_type()]:.1f}' there, '7.0' here"),
        (["--variant", "CoOp"], "--variant: '' there, 'CoOp' here"),
    ):
        assert fit([*command, *flags]) == exits.BAD_INPUT
        error = capsys.readouterr().err
        assert message in error and "another output folder (-o)" in error
    image_file(photos / "photos" / "new.png")
    try:
        assert fit(command) == exits.BAD_INPUT and "photos differ" in capsys.readouterr().err
    finally:
        (photos / "photos" / "new.png").unlink()
    assert {p for p in folder.rglob("*") if p.is_file()} == files
    assert (folder / "prompts.safetensors").read_bytes() == before


def test_none_of_these_is_said_of_what_is_not_among_the_names(photos, tmp_path, capsys):
    """The embedded teacher is the student here: the embedded student hardly knows what it does not know."""
    folder, names = tmp_path / "out", str(photos / "names.txt")
    models = ["--student", "emoji_teacher", "--teacher", "emoji_teacher", "--quick", "--quiet"]
    assert fit([str(photos / "photos"), names, "-o", str(folder), *models]) == exits.SOME_UNREAD
    assert "None of these: with --reject, predict keeps" in capsys.readouterr().out
    shares = {}
    for name, classes in (("leisure", 12), ("mammals", 8)):
        write_photos(tmp_path / name, name, classes, "test")
        outputs = ["--json", str(tmp_path / "p.jsonl"), "--csv", str(tmp_path / "p.csv")]
        assert predict([str(folder), str(tmp_path / name), "--reject", *outputs]) == 0
        rows = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text(encoding="utf-8").splitlines()]
        table = list(csv.DictReader((tmp_path / "p.csv").open(encoding="utf-8", newline="")))
        for row, line in zip(rows, table, strict=True):
            expected = (REJECTED, True) if row["rejected"] else (row["names"][0], False)
            assert (line["name"], line["probability"] == "") == expected
        shares[name] = sum(row["rejected"] for row in rows) / len(rows)
    assert shares["mammals"] > shares["leisure"] + 0.3
    (tmp_path / "other.txt").write_text("cat\ndog\n")
    other = ["--reject", "--classnames", str(tmp_path / "other.txt")]
    assert predict([str(folder), str(tmp_path / "mammals"), *other]) == exits.BAD_INPUT
    assert "calibrated for other class names" in capsys.readouterr().err


def test_calibrated_probabilities_are_the_softmax_at_the_recorded_temperature(fitted, photos):
    folder, _ = fitted
    paths = sorted(str(p) for p in (photos / "photos").glob("IMG_00[01]*.png"))
    t = read_bundle(folder).decision.temperature
    plain, calibrated = kdpl.load(folder), kdpl.load(folder, calibrated=True)
    assert torch.allclose(calibrated(paths), (plain.logits(paths) / t).softmax(1), atol=1e-6)
    assert not torch.allclose(calibrated(paths), plain(paths), atol=1e-2)


def test_prompts_without_a_fit_have_neither(tmp_path):
    from support import untrained_bundle

    folder = untrained_bundle(tmp_path / "o", "CoOp", ["a", "b"])
    with pytest.raises(BundleError, match="no temperature"):
        kdpl.load(folder, calibrated=True)
    image_file(tmp_path / "x.png")
    with pytest.raises(ValueError, match="no threshold to reject"):
        list(kdpl.load(folder).answers([str(tmp_path / "x.png")], reject=True))


def test_a_decision_that_cannot_be_is_refused():
    for content, message in (
        ({"temperature": 0.0}, "'temperature' is 0.0"),
        ({"temperature": float("nan")}, "temperature"),
        ({"threshold": 1.0}, "no background"),
        ({"sentences": ["no place"]}, "does not hold one"),
        ({"sentences": "a {}"}, "expected a list of text"),
        ({"temprature": 1.0}, "it has 'temprature'"),
        ([], "it is"),
    ):
        with pytest.raises(ValueError, match=message):
            Decision.of(content)
    assert Decision.of(None) == Decision()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["{photos}", "{one}", "-o", "{out}"], "one class name alone, 'cat'.*--reject"),
        (["{photos}", "{same}", "-o", "{out}"], "'Tennis' and 'tennis', which are the same words to CLIP"),
        (["{empty}", "{names}", "-o", "{out}"], "has 0 photos that can be read, expected at least 4"),
        (["nowhere", "{names}", "-o", "{out}"], "PHOTOS '.*nowhere' is not a folder"),
        (["{photos}", "{names}", "-o", "{out}", "--sentence", "a photo"], "must hold one '{}'"),
        (["{photos}", "{names}", "-o", "{out}", "--minutes", "0"], "--minutes is 0, expected a time above 0"),
        (
            ["{photos}", "{names}", "-o", "{out}", "--variant", "Coop"],
            "The learner 'Coop' has no settings: expected TaskRes, CSC",
        ),
        (["{photos}", "{one}", "-o", "{out}", "--variant", "CSC", "--reject"], "there is one alone: choose CoOp"),
        (["{photos}", "{names}", "-o", "{out}", "--student", "ViT-B/33"], "The closest name, 'ViT-B/32', is that"),
    ],
)
def test_what_cannot_be_fitted_is_refused_before_anything_is_loaded(argv, message, photos, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("kdpl.clip.loading.load_clip", None)  # a call would fail
    (tmp_path / "empty").mkdir()
    (tmp_path / "one.txt").write_text("cat\n")
    (tmp_path / "same.txt").write_text("tennis\nTennis\n")
    paths = {
        "photos": photos / "photos", "names": photos / "names.txt", "out": tmp_path / "out", "empty": tmp_path / "empty",
        "one": tmp_path / "one.txt", "same": tmp_path / "same.txt",
    }  # fmt: skip
    models = [] if "--student" in argv else EMBEDDED[:4]
    assert fit([*(word.format(**paths) if word != "a photo" else word for word in argv), *models]) == exits.BAD_INPUT
    assert re.search(message, capsys.readouterr().err) and not (tmp_path / "out").exists()


def test_one_name_alone_is_learned_from_a_vocabulary_and_rejects(photos, tmp_path, capsys):
    (tmp_path / "one.txt").write_text("balloon\n")
    command = [str(photos / "photos"), str(tmp_path / "one.txt"), "-o", str(tmp_path / "out"), *EMBEDDED, "--reject"]
    assert fit(command) == exits.SOME_UNREAD
    bundle = read_bundle(tmp_path / "out")
    assert bundle.class_agnostic and bundle.classnames == ["balloon"] and not bundle.comparison
    assert (
        predict([str(tmp_path / "out"), str(photos / "photos"), "--reject", "--csv", str(tmp_path / "p.csv")])
        == exits.SOME_UNREAD
    )
    found = {row["name"] for row in csv.DictReader((tmp_path / "p.csv").open(encoding="utf-8", newline=""))}
    assert found == {"balloon", REJECTED}


@pytest.mark.parametrize("where", mostly_slow(["features", "learned"], sample=("learned",)))
def test_a_fit_that_is_stopped_by_ctrl_c_resumes_to_the_same(where, fitted, photos, tmp_path):
    out, cache = tmp_path / "out", tmp_path / "cache"
    command = [str(photos / "photos"), str(photos / "names.txt"), *EMBEDDED, "-o", str(out), *SENTENCE]
    line = [sys.executable, "-c", COMMAND, "fit", *command]
    env = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads()), "KDPL_CACHE": str(cache)}
    process = processes.Popen(line, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, cwd=ROOT, env=env)

    def there():
        if where == "features":
            return any(p.stat().st_size for p in cache.glob("image_features/*/*.rows"))
        log = out / "learned" / "CSC" / "log.txt"
        return log.is_file() and "epoch [2/" in log.read_text()

    while process.poll() is None and not there():
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=240)
    assert process.returncode == exits.INTERRUPTED, error
    assert "SIGINT" in error or where == "features", error
    assert "Traceback" not in error and not (out / "prompts.safetensors").exists()
    with pytest.raises(BundleError, match="when it ends"):
        kdpl.load(out)
    assert processes.run(line, cwd=ROOT, env=env, capture_output=True, check=False).returncode == exits.SOME_UNREAD
    if where == "learned":
        logs = "".join(path.read_text() for path in (out / "learned" / "CSC").glob("log.txt*"))
        assert "Resume from" in logs, "what was learned before is not learned again"
    for learned in ("TaskRes", "CSC", "CoOp"):
        whole, resumed = (read_bundle(folder / "learned" / learned).parameters for folder in (fitted[0], out))
        assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert read_bundle(out).comparison == read_bundle(fitted[0]).comparison


def test_photos_beyond_the_time_are_left_out_and_a_resumed_fit_looks_at_the_same(photos, tmp_path, capsys, monkeypatch):
    command = [str(photos / "photos"), str(photos / "names.txt"), "-o", str(tmp_path / "out"), *EMBEDDED]
    command += ["--variant", "TaskRes", "--minutes", "0.0001"]
    monkeypatch.setattr("kdpl.photos.fitting.features.MEASURED", 2)
    monkeypatch.setattr(Pass, "chunk", property(lambda self: 32, lambda self, value: None), raising=False)
    monkeypatch.setenv("KDPL_CACHE", str(tmp_path / "cache"))
    for _ in range(2):
        assert fit(command) == exits.SOME_UNREAD
        parts, out = parts_of(tmp_path / "out"), capsys.readouterr().out
        assert 64 <= sum(map(len, parts.values())) <= 96
        if _ == 0:
            first = parts
            assert re.search(
                r"\d+ of 193 photos are looked at, drawn at random: a photo takes .* All would take --minutes 1\.", out
            )
    assert parts == first


def test_with_little_time_to_learn_the_slow_prompts_are_left_out(photos, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("kdpl.photos.fitting.run.TRAINING_LEAST", 0.0)
    monkeypatch.setattr("kdpl.photos.fitting.run.seconds", lambda *_: 1000.0)
    command = [str(photos / "photos"), str(photos / "names.txt"), "-o", str(tmp_path / "out"), *EMBEDDED]
    assert fit(command) == exits.SOME_UNREAD
    out = capsys.readouterr().out
    assert "class-specific prompts are left out: about 17 min" in out and "--variant CSC" in out
    assert [p.name for p in (tmp_path / "out" / "learned").iterdir()] == ["TaskRes"]


# ------------------------------------------------------------------------------------------------------- pieces of a fit


@given(st.floats(0.2, 8.0), st.integers(0, 1000))
def test_the_temperature_that_was_applied_is_found(temperature, seed):
    logits = 3 * torch.randn(50, 6, generator=torch.Generator().manual_seed(seed))
    assert fit_temperature(logits * temperature, logits) == pytest.approx(temperature, rel=1e-3)


def test_the_threshold_is_measured_on_other_photos_than_it_is_fitted_on():
    scores, inside = torch.cat([torch.linspace(1, 2, 100), torch.linspace(-1, 0, 50)]), torch.arange(150) < 100
    new = torch.cat([torch.full((50,), 1.5), torch.full((10,), 0.5), torch.full((30,), 0.2), torch.full((30,), 1.9)])
    found = fit_threshold(scores, inside, new, torch.arange(120) < 60)
    assert 1.0 < found.value < 1.1 and found.kept == pytest.approx(50 / 60) and found.rejected == 0.5 and found.separates
    assert "keeps 83% of 60 held-out photos" in found.words() and "rejects 50% of the 60 others" in found.words()


def test_a_threshold_that_does_not_separate_refuses_itself():
    torch.manual_seed(0)
    noise, half = torch.randn(400), torch.arange(400) % 2 == 0
    found = fit_threshold(noise, half, torch.randn(400), half)
    assert not found.separates and found.words().startswith("None of these: --reject is refused, because it would keep")
    few = fit_threshold(noise, torch.arange(400) < 9, noise, half)
    assert not few.separates and "9 photos alone" in few.words()
    alone = fit_threshold(noise, torch.ones(400, dtype=torch.bool), noise, torch.ones(400, dtype=torch.bool))
    assert alone.separates and "what it rejects is not known: to the teacher 0 of these photos" in alone.words()


def test_the_score_is_the_log_odds_of_a_softmax_over_both():
    a, b = torch.randn(5, 3), torch.randn(5, 7)
    p = torch.cat([a, b], 1).softmax(1)[:, :3].sum(1)
    assert torch.allclose(inside_score(a, b), torch.log(p / (1 - p)), atol=1e-5)


def test_background_names_are_none_of_the_classes(tmp_path):
    (tmp_path / "v.txt").write_text("\n".join(["Cat", *(f"thing {i}" for i in range(2000))]))
    found = background_names(str(tmp_path / "v.txt"), ["cat"])
    assert len(found) == len(set(found)) == 500 and "Cat" not in found and found[-1] > "thing 19"


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_the_steps_of_the_training_are_a_bar_with_the_time_left():
    for quiet in (False, True):
        with Doing("training", 1, "step", quiet, out := Terminal()) as doing:
            bar = Bar(doing)
            for line in ("* some line\n", "epoch [1/2] batch [5/10] loss 3.0\nepo", "ch [2/2] batch [1/10] loss 2.9\n"):
                time.sleep(0.15)  # the bar is drawn ten times a second at most
                bar.write(line)
        assert bool(re.search(r"11/20 \[\d\d:\d\d<\d\d:\d\d", out.getvalue())) != quiet and "loss" not in out.getvalue()


def test_what_lasts_gives_signs_of_life_where_there_is_no_terminal(monkeypatch):
    monkeypatch.setattr(waiting, "EVERY", 0.05)
    with Doing("Looking at photos", 10, "photo", out=(out := io.StringIO())) as doing:
        time.sleep(0.2)
        doing.reached(5)
        time.sleep(0.2)
    first, *lines = out.getvalue().splitlines()
    assert first == "Looking at photos ..." and any("0 s so far" in line for line in lines)
    assert re.fullmatch(r"Looking at photos: 5 of 10 photos, about \d s left", lines[-1])
    with Doing("Looking", 10, "photo", True, quiet := io.StringIO()):
        time.sleep(0.1)
    assert not quiet.getvalue()


def row(label, agrees, chosen_by=None):
    on = {REPORTED: agrees, CHOSEN_BY: agrees if chosen_by is None else chosen_by}
    learned = "" if label.startswith('"') else label
    return Row(
        label, [] if learned else ["{}"], learned, {k: Measured(torch.zeros(1), torch.tensor(v), 1.0) for k, v in on.items()}
    )


def share(percent):
    return [1.0] * percent + [0.0] * (100 - percent)


def test_the_best_is_chosen_by_other_photos_than_it_is_reported_on():
    found = compare([row('"s"', share(50)), row("a", share(60), share(90)), row("b", share(90), share(60))])
    assert found.kept.label == "a"
    assert found.verdict.startswith("A are used: agreement 50.0 -> 60.0 % (+10.0 ± 6.0 points) on 100 held-out photos")
    assert [r["to choose"] for r in found.table()] == pytest.approx([50.0, 90.0, 60.0]) and [
        r["used"] for r in found.table()
    ] == [0, 1, 0]


def test_the_verdict_says_when_a_difference_means_nothing():
    sentence = row('"s"', share(50))
    learned = row("class vectors", share(90))
    words = verdict([sentence, learned], learned)
    assert words.startswith("Class vectors are used: agreement 50.0 -> 90.0 % (+40.0 ± ") and "within" not in words
    near = row("class vectors", share(51))
    assert "within the sampling error" in verdict([sentence, near], near)
    worse = row("class vectors", share(10))
    words = verdict([sentence, worse], sentence)
    assert words.startswith('The sentence "s" is used: nothing else agrees better') and "50.0 -> 10.0 % (-40.0 ± " in words
    other = row('"t"', share(70))
    assert verdict([sentence, other, worse], other).startswith(
        'The sentence "t" is used, nothing that was learned: agreement 50.0'
    )


@given(st.integers(4, 5000), st.integers(0, 50))
def test_the_parts_of_the_photos_are_disjoint_and_labelled_ones_are_never_held_out(count, labels):
    photos = [str(i) for i in range(count)]
    labelled = photos[: min(labels, count - 4)]
    parts = split(photos, labelled)
    train, chosen_by, reported = (parts[name] for name in ("train", CHOSEN_BY, REPORTED))
    assert sorted(train + chosen_by + reported) == sorted(photos)
    assert set(labelled) <= set(train) and chosen_by and reported and len(train) >= count // 2
    assert len(reported) <= 400 and len(chosen_by) <= 200


def test_the_pace_leaves_out_the_first_chunk():
    pace = Pace()
    assert [pace.add(n, s) for n, s in ((10, 100.0), (10, 1.0), (5, 2.0), (9, 9.0))] == [False, False, True, False]
    assert pace.seconds == pytest.approx(0.2)


def test_there_is_time_for_all_labelled_photos_and_others_to_compare_on():
    fit = object.__new__(run.Fit)
    fit.decided = {}
    fit.plan = SimpleNamespace(most=5000, minutes=1.0, labels={str(i): "a" for i in range(300)})
    assert fit._limit(1.0, 24) == 364 and fit._limit(0.1, 24) == 624 and fit._limit(0.001, 24) == 5000
    fit.plan.labels = {}
    assert fit._limit(1.0, 24) == 84 and fit._limit(100.0, 24) == 64
    fit.decided = {"photos": 70}
    assert fit._limit(100.0, 24) == 5000, "a fit that is resumed looks at what was decided"


@given(st.integers(1, 500), st.floats(0, 1))
def test_wilsons_interval_holds_the_share_and_shrinks(count, share):
    right = round(share * count)
    low, high = wilson(right, count)
    assert 0 <= low <= 100 * right / count + 1e-9 and 100 * right / count - 1e-9 <= high <= 100
    wider = wilson(right * 4, count * 4)
    assert wider[1] - wider[0] <= high - low + 1e-9
    assert math.isfinite(low)


# ------------------------------------------------------------------------------------------------------------ names, eval


def test_names_are_proposed_from_the_vocabulary(photos, tmp_path, capsys):
    argv = [str(photos / "photos"), "--teacher", "emoji_teacher", "-o", str(tmp_path / "n.txt"), "--count", "20"]
    assert names_main(argv) == 0
    proposed = (tmp_path / "n.txt").read_text(encoding="utf-8").split("\n")[:-1]
    truth = set(write_photos(tmp_path / "p", "leisure", 12, "val").values())
    assert 5 < len(proposed) <= 20 and len(truth & set(proposed)) >= 4
    assert "names for" in capsys.readouterr().out


def test_no_name_is_proposed_of_an_output_that_is_no_number(photos, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Teacher, "logits", lambda self, features, scale: torch.full((len(features), 3), math.nan))
    assert names_main([str(photos / "photos"), "--teacher", "emoji_teacher", "-o", str(tmp_path / "n.txt")]) == exits.BAD_INPUT
    assert "hold NaN or infinite values" in capsys.readouterr().err and not (tmp_path / "n.txt").exists()


def labels_file(path, rows):
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    return str(path)


def held_out(folder, photos):
    """The photos of a fit that were not trained on, and the others."""
    parts = parts_of(folder)
    held = sorted({**parts[CHOSEN_BY], **parts[REPORTED]})
    return [[str(photos / "photos" / name) for name in names] for names in (held, sorted(parts["train"]))]


def test_eval_judges_what_was_checked(fitted, photos, tmp_path, capsys):
    folder, _ = fitted
    clf = kdpl.load(folder)
    paths = held_out(folder, photos)[0][:20]
    predicted = [clf.classnames[i] for i in clf(paths).argmax(1).tolist()]
    other = [next(n for n in NAMES if n != p) for p in predicted]
    rows = [("path", "label", "right", "predicted")]
    rows += [(path, name, "yes", name) for path, name in zip(paths[:12], predicted, strict=False)]
    rows += [(path, wrong, "no", name) for path, wrong, name in zip(paths[12:16], other[12:], predicted[12:], strict=False)]
    rows += [(path, "", "no", name) for path, name in zip(paths[16:18], predicted[16:], strict=False)]
    rows += [(path, "", "no", name) for path, name in zip(paths[18:], other[18:], strict=True)]  # an older prediction was wrong
    argv = [str(folder), "--labels", labels_file(tmp_path / "labels.csv", rows), "--csv", str(tmp_path / "c.csv")]
    assert evaluate(argv) == 0
    out = capsys.readouterr().out
    low, high = wilson(12, 18)
    assert f"Accuracy: 66.7 % of 18 photos (95 % interval: {low:.1f} to {high:.1f} %)" in out
    assert "2 photos are not judged" in out and "Most confident mistakes" in out and paths[12] in out
    table = list(csv.DictReader((tmp_path / "c.csv").open(encoding="utf-8", newline="")))
    assert sum(int(row["photos"]) for row in table) == 18
    confident = [float(x) for x in re.findall(r"^([01]\.\d\d) ", out, re.M)]
    assert confident == sorted(confident, reverse=True) and len(confident) == 6
    assert evaluate([*argv[:3], "--mistakes", "0"]) == 0 and "Most" not in capsys.readouterr().out


def test_eval_leaves_out_what_was_trained_on_whatever_it_is_called_now(fitted, photos, tmp_path, capsys):
    folder, _ = fitted
    held, train = held_out(folder, photos)
    renamed = tmp_path / "renamed.png"
    shutil.copy(train[0], renamed)
    rows = [("path", "label"), *((path, NAMES[0]) for path in [*held[:7], *train[1:4], str(renamed)])]
    argv = [str(folder), "--labels", labels_file(tmp_path / "labels.csv", rows), "--mistakes", "0"]
    assert evaluate(argv) == 0
    out = capsys.readouterr().out
    assert "4 of the 11 photos were trained on, 0 of them with their labels; they are left out" in out
    assert " % of 7 photos" in out
    assert evaluate([*argv, "--with-trained"]) == 0
    out = capsys.readouterr().out
    assert "they are counted" in out and " % of 11 photos" in out
    rows = [("path", "label"), *((path, NAMES[0]) for path in train[:3])]
    assert evaluate([str(folder), "--labels", labels_file(tmp_path / "l.csv", rows)]) == exits.BAD_INPUT
    assert "3 of the 3 photos were trained on" in capsys.readouterr().err
    alone = shutil.copy(folder / "prompts.safetensors", tmp_path)  # as others get it
    assert evaluate([alone, *argv[1:]]) == 0
    out = capsys.readouterr().out
    assert "trained on is not recorded here" in out and " % of 11 photos" in out


def test_eval_prints_the_gain_over_a_sentence_on_the_same_photos(fitted, photos, tmp_path, capsys):
    folder, _ = fitted
    truth = write_photos(tmp_path / "new", "leisure", 12, "val")
    argv = [str(folder), "--labels", labels_file(tmp_path / "l.csv", [("path", "label"), *truth.items()]), "--mistakes", "0"]
    assert evaluate([*argv, "--sentence", "a photo of a {}."]) == 0
    out = capsys.readouterr().out
    bundle = dataclasses.replace(read_bundle(folder), decision=Decision(sentences=["a photo of a {}."]))
    shares = []
    for clf in (Classifier(bundle), kdpl.load(folder)):
        right = [NAMES[i] == name for i, name in zip(clf(list(truth)).argmax(1).tolist(), truth.values(), strict=True)]
        shares.append(100 * sum(right) / len(right))
    assert f'With "a photo of a {{}}.": {shares[0]:.1f} % of 48 photos' in out and f"Accuracy: {shares[1]:.1f} %" in out
    assert f"Gain over the sentence: {shares[1] - shares[0]:+.1f} ± " in out


def test_labels_are_learned_too_and_never_held_out(photos, tmp_path, capsys, monkeypatch):
    """Wrong labels on purpose: the fit follows them, so that it is the labels that it learns."""
    order = sorted(p.name for p in (photos / "photos").glob("IMG*.png"))[:24]
    wrong = [("path", "label", "right", "predicted"), *((str(photos / "photos" / n), NAMES[0], "no", "") for n in order)]
    wrong += [
        (str(tmp_path / "elsewhere.png"), NAMES[1], "yes", NAMES[1]),
        (str(photos / "photos" / "x.png"), "", "no", NAMES[2]),
    ]
    command = [str(photos / "photos"), str(photos / "names.txt"), *EMBEDDED, "--variant", "TaskRes"]
    for out, flags in (("with", ["--labels", labels_file(tmp_path / "labels.csv", wrong)]), ("without", [])):
        assert fit([*command, "-o", str(tmp_path / out), *flags]) == exits.SOME_UNREAD
    printed = capsys.readouterr()
    assert "24 of them with labels" in printed.out and "1 labels of files that are not in" in printed.err
    parts = parts_of(tmp_path / "with")
    assert set(parts["labelled"]) == set(order) <= set(parts["train"]) and not parts_of(tmp_path / "without")["labelled"]
    learned = [kdpl.load(tmp_path / out / "learned" / "TaskRes") for out in ("with", "without")]
    likely = [clf([str(photos / "photos" / n) for n in order])[:, 0].mean() for clf in learned]
    assert likely[0] > likely[1] + 0.2
    right = [("path", "label"), *((str(photos / "photos" / n), NAMES[1]) for n in order)]
    other = ["--labels", labels_file(tmp_path / "labels.csv", right)]
    assert fit([*command, "-o", str(tmp_path / "with"), *other]) == exits.BAD_INPUT
    assert "labels differ" in capsys.readouterr().err
    decided = json.loads((tmp_path / "with" / "fit.json").read_text())  # as if that had been overlooked
    decided["inputs"]["labels"] = json.loads((tmp_path / "without" / "fit.json").read_text())["inputs"]["labels"]
    (tmp_path / "with" / "fit.json").write_text(json.dumps(decided))
    assert fit([*command, "-o", str(tmp_path / "with")]) == exits.BAD_INPUT
    assert "labels" in capsys.readouterr().err


def test_copies_of_a_photo_are_one_photo(photos, tmp_path, capsys):
    """Held out while another is trained on, a copy would make the comparison too good."""
    names = sorted(p.name for p in (photos / "photos").glob("IMG*.png"))[:12]
    for name in names:
        shutil.copy(photos / "photos" / name, image_file(tmp_path / "photos" / name))
        for n in range(3):
            shutil.copy(photos / "photos" / name, tmp_path / "photos" / f"{n} {name}")
    command = [
        str(tmp_path / "photos"),
        str(photos / "names.txt"),
        *EMBEDDED,
        "--variant",
        "TaskRes",
        "-o",
        str(tmp_path / "out"),
    ]
    both = [("path", "label"), *((str(tmp_path / "photos" / f"{n} {names[0]}"), NAMES[n]) for n in range(2))]
    assert fit([*command, "--labels", labels_file(tmp_path / "l.csv", both)]) == exits.BAD_INPUT
    assert re.search(f"copies of one photo, with the labels .*'{NAMES[1]}'", capsys.readouterr().err)
    one = [both[0], both[2]]
    shutil.rmtree(tmp_path / "out")
    assert fit([*command, "--labels", labels_file(tmp_path / "l.csv", one)]) == 0
    assert "36 photos are copies of others" in capsys.readouterr().out
    parts = parts_of(tmp_path / "out")
    contents = [digest for part, found in parts.items() if part != "labelled" for digest in found.values()]
    assert len(contents) == len(set(contents)) == 12 and list(parts["labelled"]) == [f"1 {names[0]}"]
    for path in (tmp_path / "photos").iterdir():
        if names[0] not in path.name:
            path.unlink()
    assert fit([*command[:-1], str(tmp_path / "alone")]) == exits.BAD_INPUT
    assert "has 1 different photos" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "rows", "message"),
    [
        ([], [("nowhere.png", NAMES[0])], "has no label of a photo in"),
        ([], [("IMG_0001.png", "no name")], "'no name' is not one of the class names"),
        (["--variant", "VPT"], [("IMG_0001.png", NAMES[0])], "VPT prompts do not: leave --labels or --variant out"),
        (["--best"], [("IMG_0001.png", NAMES[0])], "PromptSRC prompts do not: leave --labels or --best out"),
    ],
)
def test_labels_that_cannot_be_learned_are_refused_before_anything_is_loaded(
    flags, rows, message, photos, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("kdpl.clip.loading.load_clip", None)
    rows = [("path", "label"), *((str(photos / "photos" / path), label) for path, label in rows)]
    labels = ["--labels", labels_file(tmp_path / "labels.csv", rows)]
    command = [str(photos / "photos"), str(photos / "names.txt"), "-o", str(tmp_path / "out"), *EMBEDDED, *flags, *labels]
    assert fit(command) == exits.BAD_INPUT and message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_the_gallery_knows_what_the_teacher_sees(fitted, photos, tmp_path):
    folder, _ = fitted
    path = held_out(folder, photos)[0][0]
    assert predict([str(folder), path, "--html", str(tmp_path / "p.html"), "--quiet"]) == 0
    page = (tmp_path / "p.html").read_text(encoding="utf-8")
    head, item = (json.loads(line) for line in page.split(DATA_BEGINS)[1].splitlines()[:2])
    assert head["order"] == "random" and item[3]["teacher"] in NAMES
    seen = json.loads((folder / "teacher.json").read_text())
    assert item[3]["teacher"] == seen[file_digest(path).hex()] and len(seen) == 193


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [("path", "label"), ("a.png", "boxing glov")],
            "'boxing glov' is not one of the class names. Did you mean 'boxing glove'",
        ),
        ([("path", "label"), ("a.png", "")], "line 2: there is no label"),
        ([("path", "label"), ("a.png", NAMES[0]), ("a.png", NAMES[1])], "has two labels"),
        ([("path", "label"), ("a.png", NAMES[0]), ("./x/../a.png", NAMES[1])], "has two labels"),
        ([("file", "label"), ("a.png", NAMES[0])], "the columns path and label"),
        ([], "has no rows"),
        ([("path", "label"), ("gone.png", NAMES[0])], "None of the 1 photos .* no such file"),
    ],
)
def test_labels_that_cannot_be_are_refused(rows, message, fitted, tmp_path, capsys):
    assert evaluate([str(fitted[0]), "--labels", labels_file(tmp_path / "l.csv", rows)]) == exits.BAD_INPUT
    assert re.search(message, capsys.readouterr().err)


def test_a_photo_under_two_paths_is_one_photo(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "linked").symlink_to(tmp_path)
    paths = ["a.png", "./a.png", str(tmp_path / "a.png"), "linked/a.png"]
    rows = [("path", "label"), *((path, NAMES[0]) for path in paths), ("b.png", NAMES[0])]
    assert [label.path for label in read_labels(labels_file(tmp_path / "l.csv", rows), NAMES)] == ["a.png", "b.png"]


def test_large_jpegs_are_decoded_small_only_if_probabilities_stay(fitted, tmp_path, monkeypatch, capsys):
    from PIL import Image

    from kdpl.classifier import decoding

    for i, scene in enumerate(draw(scenes_of("leisure")[:88])):
        path = tmp_path / "large" / f"{i}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(scene).resize((1200, 900), Image.Resampling.BICUBIC).save(path, quality=92)
    folder = str(fitted[0])
    found = {}
    for name, flags in (("fast", []), ("full", ["--full-size"])):
        argv = [folder, str(tmp_path / "large"), "--no-cache", "--json", str(tmp_path / f"{name}.jsonl"), *flags]
        assert predict(argv) == 0
        rows = [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
        found[name] = np.array([[dict(zip(r["names"], r["probabilities"], strict=True)).get(r["names"][0], 0)] for r in rows])
        assert ("decoded at a fraction of their size" in capsys.readouterr().err) == (name == "fast")
    assert np.abs(found["fast"] - found["full"]).max() < decoding.PROMISE
    monkeypatch.setattr(decoding, "TOLERANCE", -1.0)  # where it fails: in full
    assert predict([folder, str(tmp_path / "large"), "--no-cache", "--json", str(tmp_path / "x.jsonl")]) == 0
    assert "Large JPEGs were decoded in full" in capsys.readouterr().err
    assert (tmp_path / "x.jsonl").read_bytes() == (tmp_path / "full.jsonl").read_bytes()
