"""`kdpl.load` gives the trainer's own logits, for images of any kind, in memory that does not grow with their number."""

import json
import threading

import numpy as np
import pytest
import torch
from PIL import Image
from support import LEARNERS, config, mostly_slow

import kdpl
from kdpl.bundle import write_bundle
from kdpl.common.images import BadImageError
from kdpl.trainers.checkpoints import bundle_of


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """A function that gives a trainer whose prompts have moved, and the folder of their bundle."""
    from dassl.engine import build_trainer

    runs = {}

    def run_of(name, *options):
        if (name, options) not in runs:
            folder = tmp_path_factory.mktemp(name)
            small = ("DATASET.NUM_SHOTS", 1, "DATASET.SUBSAMPLE_CLASSES", "base", "DATALOADER.TEST.BATCH_SIZE", 24)
            run = build_trainer(config(name, "emoji_leisure", folder, *small, *options))
            torch.manual_seed(1)
            for parameter in run.student.learned.parameters():
                parameter.data += 0.02 * torch.randn_like(parameter)
            run.set_model_mode("eval")
            write_bundle(folder, bundle_of(run))
            runs[name, options] = run, folder
        return runs[name, options]

    return run_of


@pytest.fixture
def coop(learned):
    """A fresh classifier of KDPL_CoOp's prompts, and the trainer."""
    run, output = learned("KDPL_CoOp")
    return kdpl.load(output), run


def paths_of(run, count=20):
    return [item.impath for item in run.dm.dataset.test[:count]]


@pytest.mark.parametrize("learner", mostly_slow(LEARNERS, "CoOp", "VPT"))
def test_the_logits_are_those_of_the_trainers_evaluation(learner, learned):
    run, output = learned(f"KDPL_{learner}")
    batch = next(iter(run.test_loader))
    expected = run.model_inference(run.parse_batch_test(batch)[0]).cpu()
    clf = kdpl.load(output)
    assert torch.equal(clf.logits(batch["impath"], batch_size=len(batch["impath"])), expected)
    assert clf.classnames == run.class_names


@pytest.mark.parametrize("precision", ["bf16", "amp"])
def test_the_logits_are_those_of_the_evaluation_in_other_precisions(precision, learned):
    run, output = learned("KDPL_CoOp", "TRAINER.COOP.PREC", precision)
    batch = next(iter(run.test_loader))
    expected = run.model_inference(run.parse_batch_test(batch)[0]).cpu()
    found = kdpl.load(output).logits(batch["impath"], batch_size=len(batch["impath"]))
    if precision == "bf16":
        assert torch.equal(found, expected)
    else:  # on a CPU a classifier is in fp32, where the evaluation may have a frozen tower in bf16
        assert (found - expected).abs().max() < 0.02 * expected.abs().max()


def test_new_class_names_give_the_logits_of_an_evaluation_on_them(coop):
    clf, run = coop
    assert torch.allclose(clf.text_features, run.student.text_features(run.prepared).cpu(), atol=1e-6)
    names = ["red balloon", "trophy", "🎈 party, with cake"]
    clf.classnames = names
    images = run.parse_batch_test(next(iter(run.test_loader)))[0][:5]
    expected = run.student(images, run.student.prepare(names)).logits.softmax(-1).cpu()
    probabilities = clf(paths_of(run, 5))
    assert torch.allclose(probabilities, expected, atol=1e-6)
    assert clf.text_features.shape == (3, 128) and clf.image_features(paths_of(run, 5)).shape == (5, 128)


def test_one_image_and_several_in_any_form_give_the_same(coop):
    clf, run = coop
    paths = paths_of(run, 4)
    arrays = [np.asarray(Image.open(path).convert("RGB")) for path in paths]
    expected = clf(paths, batch_size=3)
    assert expected.shape == (4, len(clf.classnames))
    assert torch.allclose(expected.sum(1), torch.ones(4))
    forms = [
        (path for path in paths),
        [Image.open(path) for path in paths],
        np.stack(arrays),
        torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2),
        [a.astype(np.float32) / 255 for a in arrays],
    ]
    for form in forms:
        assert torch.allclose(clf(form), expected, atol=1e-6)
    assert torch.allclose(clf(paths[0]), expected[:1], atol=1e-6)
    assert clf([]).shape == (0, len(clf.classnames))


def test_images_are_taken_when_their_turn_comes(coop):
    clf, run = coop
    path, taken = paths_of(run, 1)[0], []

    def endless():
        while True:
            taken.append(None)
            yield path

    batches = clf.stream(endless(), batch_size=2, workers=2)
    for i in range(1, 6):
        assert next(batches).probabilities.shape == (2, len(clf.classnames))
        assert len(taken) <= 2 * i + 4
    batches.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("decode")]


@pytest.mark.parametrize("workers", [0, 3])
def test_images_that_cannot_be_read_are_told_and_left_out(workers, coop, tmp_path):
    clf, run = coop
    good, bad = paths_of(run, 5), []
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff broken")
    mixed = [good[0], str(tmp_path / "broken.jpg"), *good[1:], "nowhere.png"]
    stream = clf.stream(mixed, batch_size=2, workers=workers, on_bad=lambda image, error: bad.append((image, str(error))))
    batches = list(stream)
    assert [path for answer in batches for path in answer.images] == good
    assert [len(answer.probabilities) for answer in batches] == [2, 2, 1]
    assert torch.allclose(torch.cat([answer.probabilities for answer in batches]), clf(good), atol=1e-6)
    assert [image for image, _ in bad] == [mixed[1], "nowhere.png"] and "no such file" in bad[1][1]
    with pytest.raises(BadImageError, match=r"broken\.jpg"):
        clf(mixed)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trainer", "options"),
    [
        ("KDPL_CoOp", ()),
        ("KDPL_CoOp", ("MODEL.BACKBONE.NAME", "emoji_teacher")),  # a ResNet
        ("KDPL_VPT", ()),
        ("KDPL_MaPLe", ()),
        ("KDPL_PromptSRC", ()),
    ],
)
def test_the_exported_onnx_gives_the_same_probabilities(trainer, options, learned, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    run, folder = learned(trainer, *options)
    clf = kdpl.load(folder)
    clf.classnames = names = ["trophy", "red balloon", "🎈 party, with cake"]
    session = onnxruntime.InferenceSession(clf.export_onnx(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    facts = session.get_modelmeta().custom_metadata_map
    assert json.loads(facts["classnames"]) == names and json.loads(facts["preprocessing"])["size"] == [64, 64]
    paths = paths_of(run, 5)  # already of the model's size
    pixels = np.stack([np.asarray(Image.open(p).convert("RGB")) for p in paths]).transpose(0, 3, 1, 2).astype(np.float32) / 255
    expected = clf(paths).numpy()
    for count in (1, 5):
        (probabilities,) = session.run(["probabilities"], {"pixels": pixels[:count]})
        assert np.abs(probabilities - expected[:count]).max() < 1e-4


@pytest.mark.parametrize(("trainer", "options"), [("CoOp", ("TRAINER.COOP.CSC", True)), ("TaskRes", ())])
def test_class_specific_prompts_are_used_with_their_own_names_alone(trainer, options, learned):
    run, output = learned(trainer, *options)
    clf = kdpl.load(output)
    batch = next(iter(run.test_loader))
    expected = run.model_inference(run.parse_batch_test(batch)[0]).softmax(-1).cpu()
    assert torch.allclose(clf(batch["impath"]), expected, atol=1e-6)
    names, features = clf.classnames, clf.text_features
    clf.classnames = names[::-1][:4]
    assert torch.allclose(clf.text_features, features.flip(0)[:4], atol=1e-6), "looked up by name"
    with pytest.raises(ValueError, match=r"is class-specific: .* for each of .*'yak', 'gnu'. are not among them"):
        clf.classnames = [*names[:2], "yak", "gnu"]
    assert clf.classnames == names[::-1][:4]


def test_class_names_that_cannot_be_are_refused(coop):
    before = coop[0].classnames
    for names, message in (([], "at least one name"), (["a", " "], "none of them empty"), (["a", "b", "a"], "'a' twice")):
        with pytest.raises(ValueError, match=message):
            coop[0].classnames = names
        assert coop[0].classnames == before
