"""kdpl fit, names and eval: from photos to a decision that says whether learning helped, and what of it can be trusted."""

import contextlib
import csv
import dataclasses
import io
import json
import math
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import ROOT, image_file, processes

import kdpl
from kdpl.classifier.bundle import BundleError, read_bundle
from kdpl.classifier.classifier import Classifier
from kdpl.classifier.decision import REJECTED, Decision, inside_score
from kdpl.common import exits
from kdpl.datasets.emoji.scenes import class_names
from kdpl.photos.calibrate import background_names, fit_temperature, fit_threshold
from kdpl.photos.compare import Candidate, _verdict
from kdpl.photos.demo import write_photos
from kdpl.photos.evaluate import main as evaluate
from kdpl.photos.evaluate import wilson
from kdpl.photos.fit import main as fit
from kdpl.photos.names import main as names_main
from kdpl.photos.plan import EFFORTS
from kdpl.photos.train import Bar
from kdpl.predict import main as predict

pytestmark = pytest.mark.slow

NAMES = class_names("leisure")[:12]
EMBEDDED = ["--student", "emoji_student", "--teacher", "emoji_teacher", "--quick", "--quiet"]
QUICK = dataclasses.replace(EFFORTS["quick"], steps=40)
COMMAND = f"""
import runpy
from kdpl.photos.plan import EFFORTS, Effort
EFFORTS["quick"] = {QUICK}
runpy.run_module("kdpl", run_name="__main__", alter_sys=True)
"""


@pytest.fixture(scope="module", autouse=True)
def _few_epochs():
    with pytest.MonkeyPatch.context() as context:
        context.setitem(EFFORTS, "quick", QUICK)
        yield


@pytest.fixture
def no_estimate(monkeypatch):
    """That of the fixture `fitted` and of the fit with one name alone are enough."""
    monkeypatch.setattr("kdpl.photos.train.estimate", lambda *_: "no estimate")


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
    sentence = ["--sentence", "an icon of a {}."]
    with contextlib.redirect_stdout(out):
        status = fit([str(photos / "photos"), str(photos / "names.txt"), "-o", str(photos / "out"), *EMBEDDED, *sentence])
    assert status == exits.SOME_UNREAD
    return photos / "out", out.getvalue()


def test_a_fit_says_whether_it_helped_and_keeps_the_best(fitted):
    folder, printed = fitted
    bundle = read_bundle(folder)
    rows, (used,) = bundle.comparison["rows"], [r for r in bundle.comparison["rows"] if r["used"]]
    labels = [row["prompts"] for row in rows]
    assert labels[0] == '"a photo of a {}."' and '"an icon of a {}." (yours)' in labels and labels[-1] == "learned prompts"
    assert any(re.match(r"mean of \d+ sentences", label) for label in labels)
    assert used["agreement"] == max(row["agreement"] for row in rows)
    assert (used["prompts"] == "learned prompts") == (not bundle.decision.sentences)
    for row in rows:
        assert f"{row['agreement']:.1f} ± {row['error']:.1f}" in printed
    card = (folder / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "## Agreement with the teacher" in card and f"| {used['agreement']:.1f} ± {used['error']:.1f} |" in card
    assert "sampling error" in bundle.comparison["verdict"] and bundle.comparison["verdict"] in printed
    assert "about" in printed and "GB of memory" in printed and "1 .MOV" in printed
    held, train = (set(json.loads((folder / f"{n}_photos.json").read_text())) for n in ("held_out", "train"))
    assert not held & train and len(held) == bundle.comparison["photos"] and "test/x.png" in held | train


def test_the_agreement_is_that_of_an_independent_computation(fitted, photos):
    from kdpl.clip.loading import load_clip
    from kdpl.distill.teacher import Teacher
    from kdpl.training.pixels import Normalize

    folder, _ = fitted
    bundle = read_bundle(folder)
    paths = [str(photos / "photos" / name) for name in json.loads((folder / "held_out_photos.json").read_text())]
    learned = Classifier(dataclasses.replace(bundle, decision=Decision()), "cpu")
    pre = bundle.preprocessing
    teacher = Teacher(load_clip("emoji_teacher"), NAMES, "a photo of a {}.", pre.mean, pre.std)
    images = Normalize(pre.mean, pre.std)(torch.stack([item.pixels for b in learned.decoder.batches(paths, 64) for item in b]))
    truth = (teacher.image_features(images) @ teacher.text_features.T).argmax(1)
    row = bundle.comparison["rows"][-1]
    assert row["agreement"] == pytest.approx(100 * float((learned(paths).argmax(1) == truth).float().mean()), abs=0.01)
    assert float((kdpl.load(folder)(paths).argmax(1) == truth).float().mean()) * 100 == pytest.approx(
        max(r["agreement"] for r in bundle.comparison["rows"]), abs=0.01
    )


def test_the_same_command_again_gives_the_same_and_other_photos_are_refused(fitted, photos, capsys, no_estimate):
    folder, _ = fitted
    before = (folder / "prompts.safetensors").read_bytes()
    command = [
        str(photos / "photos"),
        str(photos / "names.txt"),
        "-o",
        str(folder),
        *EMBEDDED,
        "--sentence",
        "an icon of a {}.",
    ]
    assert fit(command) == exits.SOME_UNREAD
    assert (folder / "prompts.safetensors").read_bytes() == before
    files = {p for p in folder.rglob("*") if p.is_file()}
    assert fit([*command, "--template", "an icon of a {}."]) == exits.BAD_INPUT
    error = capsys.readouterr().err
    assert "DATASET.TEMPLATE" in error and "another output folder (-o)" in error and "--fresh" not in error
    assert {p for p in folder.rglob("*") if p.is_file()} == files
    assert (folder / "prompts.safetensors").read_bytes() == before
    image_file(photos / "photos" / "new.png")
    try:
        assert fit(command) == exits.BAD_INPUT and "is the fit of other photos or names" in capsys.readouterr().err
    finally:
        (photos / "photos" / "new.png").unlink()


def test_none_of_these_is_said_of_what_is_not_among_the_names(photos, tmp_path, capsys, no_estimate):
    """The embedded teacher is the student here: the embedded student hardly knows what it does not know."""
    folder, names = tmp_path / "out", str(photos / "names.txt")
    models = ["--student", "emoji_teacher", "--teacher", "emoji_teacher", "--quick", "--quiet"]
    assert fit([str(photos / "photos"), names, "-o", str(folder), *models]) == exits.SOME_UNREAD
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
        ({"temprature": 1.0}, "it has temprature"),
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
        (["{photos}", "{names}", "-o", "{out}", "--variant", "Coop"], "The learner 'Coop' has no settings"),
        (["{photos}", "{names}", "-o", "{out}", "--student", "ViT-B/33"], "Did you mean 'ViT-B/32'"),
    ],
)
def test_what_cannot_be_fitted_is_refused_before_anything_is_loaded(argv, message, photos, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("kdpl.photos.train.train", None)  # a call would fail
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


def test_a_fit_that_is_stopped_by_ctrl_c_resumes_to_the_same_prompts(fitted, photos, tmp_path, no_estimate):
    out, command = tmp_path / "out", [str(photos / "photos"), str(photos / "names.txt"), *EMBEDDED]
    line = [sys.executable, "-c", COMMAND, "fit", *command, "-o", str(out), "--sentence", "an icon of a {}."]
    env = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = processes.Popen(line, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, cwd=ROOT, env=env)
    log = out / "log.txt"
    while process.poll() is None and not (log.is_file() and "epoch [2/" in log.read_text()):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=240)
    assert process.returncode == exits.INTERRUPTED, error
    assert "SIGINT" in error and "Traceback" not in error and not (out / "prompts.safetensors").exists()
    assert fit([*command, "-o", str(out), "--sentence", "an icon of a {}."]) == exits.SOME_UNREAD
    logs = "".join(path.read_text() for path in out.glob("log.txt*"))
    assert "Resume from" in logs, "what was learned before is not learned again"
    whole, resumed = (read_bundle(folder).parameters for folder in (fitted[0], out))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


# ------------------------------------------------------------------------------------------------------- pieces of a fit


@given(st.floats(0.2, 8.0), st.integers(0, 1000))
def test_the_temperature_that_was_applied_is_found(temperature, seed):
    logits = 3 * torch.randn(50, 6, generator=torch.Generator().manual_seed(seed))
    assert fit_temperature(logits * temperature, logits) == pytest.approx(temperature, rel=1e-3)


def test_the_threshold_keeps_what_the_teacher_keeps():
    scores = torch.cat([torch.linspace(1, 2, 100), torch.linspace(-1, 0, 50)])
    found = fit_threshold(scores, torch.arange(150) < 100)
    assert 1.0 < found.value < 1.1 and found.kept == pytest.approx(0.95) and found.rejected == 1.0
    alone = fit_threshold(scores[:100], torch.zeros(100, dtype=torch.bool))  # too few inside: all photos count
    assert 1.0 < alone.value < 1.1


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
        bar = Bar(out := Terminal(), quiet)
        for line in ("* some line\n", "epoch [1/2] batch [5/10] loss 3.0\nepo", "ch [2/2] batch [1/10] loss 2.9\n"):
            time.sleep(0.15)  # the bar is drawn ten times a second at most
            bar.write(line)
        bar.close()
        assert bool(re.search(r"11/20 \[\d\d:\d\d<\d\d:\d\d", out.getvalue())) != quiet and "loss" not in out.getvalue()


def candidate(label, agrees):
    return Candidate(
        label, [] if label == "learned prompts" else ["{}"], torch.zeros(len(agrees), 2), torch.tensor(agrees), 1.0
    )


def test_the_verdict_says_when_a_difference_means_nothing():
    sentence, learned = candidate("s", [1.0] * 50 + [0.0] * 50), candidate("learned prompts", [1.0] * 90 + [0.0] * 10)
    words = _verdict([sentence, learned], learned)
    assert words.startswith("The learned prompts are used: +40.0 points") and "within" not in words
    near = candidate("learned prompts", [1.0] * 51 + [0.0] * 49)
    assert "within the sampling error" in _verdict([sentence, near], near)
    worse = candidate("learned prompts", [1.0] * 10 + [0.0] * 90)
    assert _verdict([sentence, worse], sentence).startswith("Sentences are used, not the learned prompts: s, +40.0 points")


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


def labels_file(path, rows):
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    return str(path)


def test_eval_judges_what_was_checked(fitted, photos, tmp_path, capsys):
    folder, _ = fitted
    clf = kdpl.load(folder)
    paths = sorted(str(p) for p in (photos / "photos").glob("IMG_00*.png"))[:20]
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


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [("path", "label"), ("a.png", "boxing glov")],
            "'boxing glov' is not one of the class names. Did you mean 'boxing glove'",
        ),
        ([("path", "label"), ("a.png", "")], "line 2: there is no label"),
        ([("path", "label"), ("a.png", NAMES[0]), ("a.png", NAMES[1])], "has two labels"),
        ([("file", "label"), ("a.png", NAMES[0])], "the columns path and label"),
        ([], "has no rows"),
        ([("path", "label"), ("gone.png", NAMES[0])], "None of the 1 photos .* no such file"),
    ],
)
def test_labels_that_cannot_be_are_refused(rows, message, fitted, tmp_path, capsys):
    assert evaluate([str(fitted[0]), "--labels", labels_file(tmp_path / "l.csv", rows)]) == exits.BAD_INPUT
    assert re.search(message, capsys.readouterr().err)


def test_large_jpegs_are_decoded_small_only_if_probabilities_stay(fitted, tmp_path, monkeypatch, capsys):
    from PIL import Image

    from kdpl.classifier import reduction
    from kdpl.datasets.emoji.scenes import draw, scenes_of

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
    assert np.abs(found["fast"] - found["full"]).max() < reduction.PROMISE
    monkeypatch.setattr(reduction, "TOLERANCE", -1.0)  # where it fails: in full
    assert predict([folder, str(tmp_path / "large"), "--no-cache", "--json", str(tmp_path / "x.jsonl")]) == 0
    assert "Large JPEGs were decoded in full" in capsys.readouterr().err
    assert (tmp_path / "x.jsonl").read_bytes() == (tmp_path / "full.jsonl").read_bytes()
