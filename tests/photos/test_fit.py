"""kdpl fit, refit, names and eval: from photos to a decision that says whether learning helped, and what can be trusted."""

import contextlib
import csv
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from support import ROOT, image_file, processes

import kdpl
from kdpl.bundle import BundleError, read_bundle
from kdpl.common import exits
from kdpl.common.files import file_digest
from kdpl.datasets.emoji.scenes import class_names, scenes_of
from kdpl.photos.answers import Measured, Row, fit_threshold, misfit, split, verdict
from kdpl.photos.evaluate import main as evaluate
from kdpl.photos.fit import main as fit
from kdpl.photos.fit import refit_main as refit
from kdpl.photos.fit import write_scenes
from kdpl.photos.names import main as names_main
from kdpl.photos.pile import Towers, read_pile
from kdpl.predict import main as predict

pytestmark = pytest.mark.slow

NAMES = class_names("leisure")[:12]
EMBEDDED = ["--student", "emoji_student", "--teacher", "emoji_teacher", "--quiet"]


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


def command(photos, out, *flags):
    return [str(photos / "photos"), str(photos / "names.txt"), "-o", str(out), *EMBEDDED, *flags]


@pytest.fixture(scope="module")
def fitted(photos):
    """The output folder of a fit, and what it printed."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert fit(command(photos, photos / "out")) == exits.SOME_UNREAD
    return photos / "out", out.getvalue()


def contents_of(folder):
    """The learned files of a fit, without the lock."""
    names = ("prompts.safetensors", "features.safetensors", "photos.json", "teacher.json", "MODEL_CARD.md", "names.txt")
    return {name: (folder / name).read_bytes() for name in names}


def same_answers(a, b):
    a, b = read_bundle(a), read_bundle(b)
    assert (a.comparison, a.decision, a.classnames) == (b.comparison, b.decision, b.classnames)
    return all(torch.equal(a.parameters[name], b.parameters[name]) for name in {**a.parameters, **b.parameters})


def record(folder):
    """The label that was learned of each photo, by digest."""
    return json.loads((folder / "photos.json").read_text(encoding="utf-8"))


def names_file(path, names):
    path.write_text("\n".join(names), encoding="utf-8")
    return str(path)


def labels_file(path, rows):
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("path", "label"), *rows])
    return str(path)


# ------------------------------------------------------------------------------------------------------------ fit and refit


def test_a_fit_says_whether_it_helped_and_what_to_look_at(fitted):
    folder, printed = fitted
    bundle = read_bundle(folder)
    rows, (used,) = bundle.comparison["rows"], [r for r in bundle.comparison["rows"] if r["used"]]
    assert rows[0]["prompts"] == '"a photo of a {}."'
    assert used["prompts"] == "head on the photos" and used["agreement"] > rows[0]["agreement"] + 10
    plain = max(row["agreement"] for row in rows if row is not used)
    assert f"agreement {plain:.1f} -> {used['agreement']:.1f} %" in bundle.comparison["verdict"], "against the best of them"
    for row in rows:
        assert f"{row['agreement']:.1f} ± {row['error']:.1f}" in printed
    assert "## Agreement with the teacher" in (folder / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "1 .MOV" in printed and "once more, to all 193 photos" in printed
    doubtful = re.findall(r"^  (\S+\.png): (.*), or (.*)\?$", printed, re.M)
    assert 3 <= len(doubtful) <= 4 and all(os.path.isfile(path) and {a, b} <= set(NAMES) for path, a, b in doubtful)
    assert list(record(folder).values()) == [""] * 193


def test_probabilities_are_those_of_an_independent_computation(fitted, photos):
    folder, _ = fitted
    p = read_bundle(folder).parameters
    classifier, paths = kdpl.load(folder, "cpu"), sorted(str(p) for p in (photos / "photos").glob("IMG_00[01]*.png"))
    x = torch.nn.functional.normalize(classifier.image_features(paths).double(), dim=-1)
    centres = torch.nn.functional.normalize(p["centres"].double(), dim=-1)
    k = torch.stack([torch.stack([torch.exp(p["gamma"].double() * (a @ c - 1)) for c in centres]) for a in x])
    scores = k @ p["coefficients"].double() + p["mean"].double() + x @ p["linear"].double().T
    assert torch.allclose(classifier(paths).double(), (p["factor"].double() * scores).softmax(1), atol=1e-5)


def test_the_same_command_gives_the_same_bits_and_reads_nothing_twice(fitted, photos, monkeypatch):
    folder, _ = fitted
    before = contents_of(folder)
    with monkeypatch.context() as context:
        context.setattr(Towers, "__call__", None)  # every feature is known
        assert fit(command(photos, folder)) == exits.SOME_UNREAD
    assert contents_of(folder) == before


def test_a_refit_is_the_fresh_fit_with_these_names(fitted, photos, tmp_path, monkeypatch, capsys):
    other = [*NAMES[2:], *class_names("mammals")[:10]]
    names = names_file(tmp_path / "names.txt", other)
    truth = write_photos(tmp_path / "new", "leisure", 12, "val")
    labels = labels_file(tmp_path / "l.csv", [(str(p), NAMES[5]) for p in sorted((photos / "photos").glob("IMG*"))[:5]])
    for flags in ([], ["--labels", labels]):
        fresh, again = tmp_path / f"fresh{len(flags)}", tmp_path / f"again{len(flags)}"
        assert fit([str(photos / "photos"), names, "-o", str(fresh), *EMBEDDED, *flags]) == exits.SOME_UNREAD
        with monkeypatch.context() as context:
            context.setattr("kdpl.classifier.decoding.open_image", None)  # no photo is read
            assert refit([str(fitted[0]), names, "-o", str(again), *flags]) == 0
        assert same_answers(fresh, again)
    assert "No photo seems to show" in capsys.readouterr().out and read_bundle(again).comparison["without photo"]
    assert torch.equal(kdpl.load(fresh)(list(truth)), kdpl.load(again)(list(truth)))


def test_a_fit_for_other_names_in_the_same_folder_says_so_and_photos_added_since_are_encoded_alone(
    photos, fitted, tmp_path, capsys, monkeypatch
):
    shutil.copytree(photos / "photos", tmp_path / "photos")
    argv = [str(tmp_path / "photos"), str(photos / "names.txt"), "-o", str(tmp_path / "out"), *EMBEDDED]
    assert fit(argv) == exits.SOME_UNREAD
    for i in range(3):
        image_file(tmp_path / "photos" / f"new{i}.png", seed=i)
    seen, call = [], Towers.__call__
    monkeypatch.setattr(Towers, "__call__", lambda self, pixels: seen.append(len(pixels)) or call(self, pixels))
    argv[1] = names_file(tmp_path / "other.txt", NAMES[:8])
    assert fit(argv) == exits.SOME_UNREAD
    out = capsys.readouterr().out
    assert seen == [3] and "193 of 197 photos are known" in out
    assert len(read_pile(tmp_path / "out")) == 196 and read_bundle(tmp_path / "out").classnames == NAMES[:8]


def test_a_fit_that_is_stopped_ends_with_75_and_resumes_to_the_same_bits(fitted, photos, tmp_path):
    line = [sys.executable, "-m", "kdpl", "fit", *command(photos, tmp_path / "out")]
    line.remove("--quiet")
    env = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads()), "PYTHONUNBUFFERED": "1"}
    for said in ("Loading PyTorch", "Loading emoji_student", "Looking at photos", "Solving"):
        process = processes.Popen(line, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, cwd=ROOT, env=env)
        for text in process.stderr:
            if said in text:
                break
        process.send_signal(signal.SIGTERM)
        _, error = process.communicate(timeout=240)
        assert process.returncode == exits.INTERRUPTED and "Traceback" not in error, (said, process.returncode, error)
        assert not (tmp_path / "out" / "prompts.safetensors").exists()
    with pytest.raises(BundleError, match="when it ends"):
        kdpl.load(tmp_path / "out")
    (tmp_path / "out" / ".x.kdpl-part").touch()  # as a killed one leaves
    assert processes.run(line, cwd=ROOT, env=env, capture_output=True, check=False).returncode == exits.SOME_UNREAD
    assert contents_of(tmp_path / "out") == contents_of(fitted[0])
    assert not list((tmp_path / "out").glob(".*.kdpl-part"))


def test_a_pass_that_was_killed_resumes_in_the_middle(fitted, photos, tmp_path, monkeypatch):
    call, left = Towers.__call__, [2]

    def once(self, pixels):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return call(self, pixels)

    with monkeypatch.context() as context:
        context.setattr(Towers, "__call__", once)
        with pytest.raises(KeyboardInterrupt):
            fit(command(photos, tmp_path / "out"))
    assert len(read_pile(tmp_path / "out")) == 128
    assert fit(command(photos, tmp_path / "out")) == exits.SOME_UNREAD
    assert contents_of(tmp_path / "out") == contents_of(fitted[0])


# ----------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["{photos}", "{same}", "-o", "{out}"], "'Tennis' and 'tennis', which are the same words to CLIP"),
        (
            ["{empty}", "{names}", "-o", "{out}"],
            "has 0 different photos that can be read, 0 without a label",
        ),
        (["{photos}", "{names}", "-o", "{out}", "--template", "a photo"], "must hold one '{}'"),
        (["{photos}", "{one}", "-o", "{out}"], "has one class name alone: give two or more"),
        (["{photos}", "{names}", "-o", "{out}", "--student", "ViT-B/33"], "ViT-B/32"),
        (["{photos}", "{names}", "-o", "{photos}/out"], "is inside the photos' folder"),
        (["{photos}", "{names}", "-o", "{others}"], "a file that kdpl fit did not write, 'index.html'"),
        (["--demo", "-o", "{others}"], "did not write, 'index.html'"),
        (["{photos}", "{names}", "-o", "{out}", "--labels", "{elsewhere}"], "has no label of a photo in"),
    ],
)
def test_what_cannot_be_fitted_is_refused_before_anything_is_loaded_or_written(
    argv, message, photos, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("kdpl.clip.loading.load_clip", None)  # a call would fail
    monkeypatch.setattr("kdpl.photos.pile.load_clip", None)
    (tmp_path / "empty").mkdir()
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "index.html").write_text("mine")
    paths = {
        "photos": photos / "photos", "names": photos / "names.txt", "out": tmp_path / "out", "empty": tmp_path / "empty",
        "one": names_file(tmp_path / "one.txt", ["cat"]), "same": names_file(tmp_path / "same.txt", ["tennis", "Tennis"]),
        "others": tmp_path / "others", "elsewhere": labels_file(tmp_path / "e.csv", [("nowhere.png", NAMES[0])]),
    }  # fmt: skip
    models = [] if {"--student", "--demo"} & set(argv) else EMBEDDED[:4]
    assert fit([*(word if word == "a photo" else word.format(**paths) for word in argv), *models]) == exits.BAD_INPUT
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()
    assert [p.name for p in (tmp_path / "others").iterdir()] == ["index.html"]


def test_a_refused_fit_rewrites_nothing(fitted, photos, tmp_path, capsys):
    before = contents_of(fitted[0])
    argv = command(photos, fitted[0])
    argv[argv.index("emoji_student")] = "emoji_teacher"
    assert fit(argv) == exits.BAD_INPUT
    assert "--student 'emoji_student', not 'emoji_teacher'" in capsys.readouterr().err
    assert refit([str(fitted[0]), str(tmp_path / "none.txt")]) == exits.BAD_INPUT
    assert refit([str(fitted[0]), str(photos / "names.txt"), "-o", str(photos / "photos" / "out")]) == exits.BAD_INPUT
    assert "is inside the photos' folder" in capsys.readouterr().err and not (photos / "photos" / "out").exists()
    assert refit([str(tmp_path), str(photos / "names.txt")]) == exits.BAD_INPUT
    err = capsys.readouterr().err
    assert "features.safetensors' is missing" in err and "PyTorch" not in err
    assert contents_of(fitted[0]) == before


# ----------------------------------------------------------------------------------------------------------------- verdicts


def test_noise_is_no_gain(tmp_path, capsys):
    random = np.random.default_rng(0)
    for i in range(60):
        (tmp_path / "noise").mkdir(exist_ok=True)
        Image.fromarray(random.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(tmp_path / "noise" / f"{i}.png")
    names = names_file(tmp_path / "n.txt", class_names("mammals")[:40])
    assert fit([str(tmp_path / "noise"), names, "-o", str(tmp_path / "out"), *EMBEDDED]) == 0
    words = read_bundle(tmp_path / "out").comparison["verdict"]
    assert words.startswith("The names do not fit these photos: ") and "+" not in words


def test_answers_without_information_are_a_misfit():
    sure = torch.eye(10).repeat(5, 1)
    assert not misfit(sure, 0.9, 10) and "takes 10% of them" in misfit(sure, 0.1, 10)
    even = torch.full((50, 10), 0.1).index_put((torch.arange(50), torch.arange(50) % 10), torch.tensor(0.101))
    assert "tell 0.00 nats" in misfit(even, 0.9, 10)
    assert "one name to 100%" in misfit(torch.eye(10)[:1].repeat(50, 1), 0.9, 10)
    assert not misfit(torch.eye(2).repeat(25, 1), 0.9, 2)


def row(label, agrees):
    measured = Measured(torch.zeros(1), torch.tensor(agrees), 1.0)
    return Row(label, ["{}"] if label.startswith('"') else [], label == "head", measured, measured)


def share(percent):
    return [1.0] * percent + [0.0] * (100 - percent)


def test_the_verdict_compares_with_the_best_of_what_needs_no_photo():
    rows = [row('"s"', share(50)), row('"t"', share(60)), row("always x", share(55)), row("head", share(90))]
    words = verdict(rows, rows[-1], "")
    assert words.startswith("Used: head, agreement 60.0 -> 90.0 % (+30.0 ± ") and 'no photo, "t".' in words
    near = [row('"s"', share(50)), row("head", share(51))]
    assert "within the sampling error" in verdict(near, near[1], "")
    worse = [row('"s"', share(50)), row("head", share(10))]
    assert verdict(worse, worse[0], "").startswith('Used: the sentence, "s"; nothing learned agrees better')
    assert "-40.0 ±" in verdict(worse, worse[0], "")


# ------------------------------------------------------------------------------------- labels, learners, none of these


def test_labels_are_learned_and_never_held_out(photos, tmp_path, capsys):
    """Wrong labels on purpose: the fit follows them, so that it is the labels that it learns."""
    some = sorted(p for p in (photos / "photos").glob("IMG*.png"))[:24]
    rows = [*((str(p), NAMES[0]) for p in some), (str(tmp_path / "elsewhere.png"), NAMES[1])]
    labels = labels_file(tmp_path / "labels.csv", rows)
    for out, flags in (("with", ["--labels", labels]), ("without", [])):
        assert fit(command(photos, tmp_path / out, *flags)) == exits.SOME_UNREAD
    printed = capsys.readouterr()
    assert "24 of them with labels" in printed.out and "1 labels of files that are not in" in printed.err
    known = record(tmp_path / "with")
    assert {digest for digest, label in known.items() if label} == {file_digest(p).hex() for p in some} and len(known) == 193
    likely = [kdpl.load(tmp_path / out)([str(p) for p in some])[:, 0].mean() for out in ("with", "without")]
    assert likely[0] > likely[1] + 0.3
    assert evaluate([str(tmp_path / "with"), "--labels", labels_file(tmp_path / "l.csv", rows[:-1])]) == exits.BAD_INPUT
    assert "24 of the 24 photos were learned with their labels" in capsys.readouterr().err


def test_copies_of_a_photo_are_one_photo(photos, tmp_path, capsys):
    """Held out while another is learned from, a copy would make the comparison too good."""
    names = sorted(p.name for p in (photos / "photos").glob("IMG*.png"))[:12]
    for name in names:
        shutil.copy(photos / "photos" / name, image_file(tmp_path / "photos" / name))
        for n in range(3):
            shutil.copy(photos / "photos" / name, tmp_path / "photos" / f"{n} {name}")
    argv = [str(tmp_path / "photos"), str(photos / "names.txt"), *EMBEDDED, "-o", str(tmp_path / "out")]
    label = [(str(tmp_path / "photos" / f"1 {names[0]}"), NAMES[1])]
    assert fit([*argv, "--labels", labels_file(tmp_path / "l.csv", label)]) == 0
    assert "36 photos are copies of others" in capsys.readouterr().out
    known = record(tmp_path / "out")
    assert len(known) == 12 and [label for label in known.values() if label] == [NAMES[1]]


def test_a_trained_learner_is_compared_and_resumes_after_a_stop(photos, tmp_path):
    line = [sys.executable, "-m", "kdpl", "fit", *command(photos, tmp_path / "out", "--learn", "TaskRes")]
    env = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = processes.Popen(line, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, cwd=ROOT, env=env)
    log = tmp_path / "out" / "learned" / "TaskRes" / "log.txt"
    while process.poll() is None and not (log.is_file() and "epoch [2/" in log.read_text()):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=240)
    assert process.returncode == exits.INTERRUPTED and "Traceback" not in error, error
    assert processes.run(line, cwd=ROOT, env=env, capture_output=True, check=False).returncode == exits.SOME_UNREAD
    line[line.index(str(photos / "names.txt"))] = names_file(tmp_path / "some.txt", NAMES[:8])
    other = processes.run(line, cwd=ROOT, env=env, capture_output=True, check=False, text=True)
    assert other.returncode == exits.BAD_INPUT and "trained for other photos, names or labels: choose another" in other.stderr
    labels = [row["prompts"] for row in read_bundle(tmp_path / "out").comparison["rows"]]
    assert labels[-2:] == ["head on the photos", "class vectors"]
    rows = labels_file(tmp_path / "l.csv", [(str(path), NAMES[0]) for path in (photos / "photos").glob("IMG_000?.png")])
    assert evaluate([str(tmp_path / "out" / "learned" / "TaskRes"), "--labels", rows]) == 0, "it is a training of its own"


def test_none_of_these_is_said_of_what_is_not_among_the_names(photos, tmp_path, capsys):
    """The embedded teacher is the student here: the embedded student hardly knows what it does not know."""
    argv = command(photos, tmp_path / "out")
    argv[argv.index("emoji_student")] = "emoji_teacher"
    assert fit(argv) == exits.SOME_UNREAD
    printed = capsys.readouterr().out
    assert "Student and teacher are the same CLIP" in printed and "None of these: with --reject, predict keeps" in printed
    shares = {}
    for name, classes in (("leisure", 12), ("mammals", 8)):
        write_photos(tmp_path / name, name, classes, "test")
        table = tmp_path / "p.jsonl"
        assert predict([str(tmp_path / "out"), str(tmp_path / name), "--reject", "--quiet", "--json", str(table)]) == 0
        rows = [json.loads(line)["rejected"] for line in table.read_text(encoding="utf-8").splitlines()]
        shares[name] = sum(rows) / len(rows)
    assert shares["mammals"] > shares["leisure"] + 0.3


def test_the_threshold_is_measured_on_other_photos_than_it_is_fitted_on():
    scores, inside = torch.cat([torch.linspace(1, 2, 100), torch.linspace(-1, 0, 50)]), torch.arange(150) < 100
    new = torch.cat([torch.full((50,), 1.5), torch.full((10,), 0.5), torch.full((30,), 0.2), torch.full((30,), 1.9)])
    value, line = fit_threshold(scores, inside, new, torch.arange(120) < 60)
    assert 1.0 < value < 1.1 and "keeps 83% of 60 held-out photos" in line and "rejects 50% of the 60 others" in line
    noise, half = torch.randn(400, generator=torch.Generator().manual_seed(0)), torch.arange(400) % 2 == 0
    value, line = fit_threshold(noise, half, noise.flip(0), half)
    assert value is None and "does not separate" in line
    assert fit_threshold(scores, torch.arange(150) < 4, new, torch.arange(120) < 60)[0] is None, (
        "4 photos are too few to fit by"
    )


@given(st.integers(4, 5000), st.integers(0, 50))
def test_the_parts_of_the_photos_are_disjoint_and_labelled_ones_are_never_held_out(count, labels):
    photos = [str(i) for i in range(count)]
    labelled = dict.fromkeys(photos[: min(labels, count - 4)], "a")
    parts = split(photos, labelled, 1)
    train, chosen_by, reported = parts
    assert sorted(train + chosen_by + reported) == list(range(count))
    assert set(range(len(labelled))) <= set(train) and chosen_by and reported and len(train) >= count // 2


# ------------------------------------------------------------------------------------------------------------ names, eval


def test_names_are_proposed_from_the_vocabulary(photos, tmp_path, capsys):
    argv = [str(photos / "photos"), "--teacher", "emoji_teacher", "-o", str(tmp_path / "n.txt"), "--count", "20"]
    assert names_main(argv) == 0
    proposed = (tmp_path / "n.txt").read_text(encoding="utf-8").split("\n")[:-1]
    truth = set(write_photos(tmp_path / "p", "leisure", 12, "val").values())
    assert 5 < len(proposed) <= 20 and len(truth & set(proposed)) >= 4
    assert "names for" in capsys.readouterr().out


def test_eval_judges_what_was_checked(fitted, tmp_path, capsys):
    folder, _ = fitted
    clf = kdpl.load(folder)
    paths = sorted(write_photos(tmp_path / "new", "leisure", 12, "val"))[:20]
    predicted = [clf.classnames[i] for i in clf(paths).argmax(1).tolist()]
    other = [next(n for n in NAMES if n != p) for p in predicted]
    rows = [("path", "label", "right", "predicted")]
    rows += [(path, name, "yes", name) for path, name in zip(paths[:12], predicted, strict=False)]
    rows += [(path, wrong, "no", name) for path, wrong, name in zip(paths[12:16], other[12:], predicted[12:], strict=False)]
    rows += [(path, "", "no", name) for path, name in zip(paths[16:18], predicted[16:], strict=False)]
    rows += [(path, "", "no", name) for path, name in zip(paths[18:], other[18:], strict=True)]  # an older one was wrong
    with (tmp_path / "labels.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    os.mkfifo(tmp_path / "fifo")  # written through
    with subprocess.Popen(["cat", tmp_path / "fifo"], stdout=subprocess.PIPE, text=True) as reader:
        argv = ["--labels", str(tmp_path / "labels.csv"), "--csv", str(tmp_path / "fifo")]
        assert evaluate([str(folder), *argv]) == 0
        counts = [int(row["photos"]) for row in csv.DictReader(reader.communicate()[0].splitlines())]
    assert sum(counts) == 18 and (tmp_path / "fifo").is_fifo()
    out = capsys.readouterr().out
    assert "Accuracy: 66.7 % of 18 photos (95 % interval: 43.7 to 83.7 %)" in out  # Wilson's, from R's prop.test
    assert "2 photos are not judged" in out
    confused = re.findall(r"^(\d+) +(.*\S) {2,}(.*\S)$", out, re.M)
    assert sum(int(n) for n, *_ in confused) == 6 and {label for _, label, _ in confused} <= {*NAMES, "(not known)"}


def test_eval_counts_the_photos_of_the_fit_apart_and_the_gain_over_a_sentence(fitted, photos, tmp_path, capsys):
    folder, _ = fitted
    new = write_photos(tmp_path / "new", "leisure", 12, "val")
    seen = sorted(str(p) for p in (photos / "photos").glob("IMG*"))[:5]
    renamed = shutil.copy(seen[0], tmp_path / "renamed.png")
    rows = [*new.items(), *((path, NAMES[0]) for path in [*seen[1:], renamed])]
    argv = [str(folder), "--labels", labels_file(tmp_path / "l.csv", rows)]
    assert evaluate([*argv, "--sentence", "a photo of a {}."]) == 0
    out = capsys.readouterr().out
    assert " % of 48 photos" in out and re.search(r"that the fit has seen, without a label: .* of 5 photos", out)
    gain = float(re.search(r"Gain over the sentence: ([+-]\d+\.\d) ±", out)[1])
    shares = [float(x) for x in re.findall(r"(\d+\.\d) % of 48 photos", out)]
    assert gain == pytest.approx(shares[1] - shares[0], abs=0.11)
    alone = shutil.copy(folder / "prompts.safetensors", tmp_path)  # as others get it
    assert evaluate([alone, *argv[1:]]) == 0 and "trained on is not recorded here" in capsys.readouterr().out


def test_the_gallery_knows_what_the_teacher_sees(fitted, photos, tmp_path):
    path = str(photos / "photos" / "IMG_0001.png")
    assert predict([str(fitted[0]), path, "--html", str(tmp_path / "p.html"), "--quiet"]) == 0
    page = (tmp_path / "p.html").read_text(encoding="utf-8")
    seen = json.loads((fitted[0] / "teacher.json").read_text())
    assert len(seen) == 193 and f'"teacher": "{seen[file_digest(path).hex()]}"' in page.replace('":"', '": "')


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\na.png,boxing glov", "'boxing glov' is not one of the class names. Did you mean 'boxing glove'"),
        ("path,label\na.png,", "line 2: there is no label"),
        (f"path,label\na.png,{NAMES[0]}\n./x/../a.png,{NAMES[1]}", "has two labels"),
        (f"file,label\na.png,{NAMES[0]}", "the columns path and label"),
        (f"path,label\ngone.png,{NAMES[0]}", "None of the 1 photos .* no such file"),
    ],
)
def test_labels_that_cannot_be_are_refused(text, message, fitted, tmp_path, capsys):
    (tmp_path / "l.csv").write_text(text)
    assert evaluate([str(fitted[0]), "--labels", str(tmp_path / "l.csv")]) == exits.BAD_INPUT
    assert re.search(message, capsys.readouterr().err)
