"""Bundles from elsewhere: values that no training writes are refused by name and at once, and NaN is never a prediction."""

import json
import time

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from support import image_file, untrained_bundle

import kdpl
from kdpl import predict
from kdpl.bundle import FILE_NAME, KEY, BundleError, read_bundle
from kdpl.clip.model import NotFiniteError

NAN, INFINITY = float("nan"), float("inf")
COUNTS = {"num_classes": 2, "num_images": 9}
RESULT = {"dataset": "EmojiMeals", "split": "test", "classes": "all", **COUNTS, "accuracy": 50.0, "macro_f1": 49.0}
ROW = {"prompts": "learned prompts", "agreement": 90.0, "error": 1.0, "divergence": 0.1, "used": True}
TABLE = {"rows": [ROW], "photos": 9, "verdict": "They agree."}


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """The tensors and the metadata of a bundle."""
    folder = untrained_bundle(tmp_path_factory.mktemp("sound"), "CoOp", ["cat", "hot dog"])
    with safe_open(folder / FILE_NAME, "pt") as file:
        tensors, content = {key: file.get_tensor(key) for key in file.keys()}, json.loads(file.metadata()[KEY])  # noqa: SIM118
    del content["digest"]
    return tensors, content


def write(folder, tensors, content):
    save_file(tensors, folder / FILE_NAME, {KEY: json.dumps(content)})
    return folder


def preprocessing(**change):
    return lambda content: {"preprocessing": {**content["preprocessing"], **change}}


def results(**change):
    return lambda content: {"results": [RESULT, {**RESULT, **change}]}


def decision(**change):
    return lambda content: {"decision": change}


def comparison(**change):
    return lambda content: {"comparison": {**TABLE, **change}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (preprocessing(size=[INFINITY, 64]), "'size' of the preprocessing is"),
        (preprocessing(size=[64.0, 64.0]), "'size' of the preprocessing is"),
        (preprocessing(size=[2**40, 2**40]), "'size' of the preprocessing is"),
        (preprocessing(size=["64", "64"]), "'size' of the preprocessing is"),
        (preprocessing(size=None), "lacks size"),
        (preprocessing(mean=[NAN, 0, 0]), r"'mean' of the preprocessing is \[nan, 0, 0\]"),
        (preprocessing(mean=["0.5"] * 3), "'mean' of the preprocessing is"),
        (preprocessing(std=[1e-300] * 3), "'std' of the preprocessing is"),
        (preprocessing(std=[INFINITY] * 3), "'std' of the preprocessing is"),
        (preprocessing(interpolation=["bicubic"]), "'interpolation' of the preprocessing is"),
        (lambda c: {"classnames": ["a cat", "dog", "a_cat"]}, "hold 'a_cat' twice"),
        (lambda c: {"classnames": ["cat", " "]}, "class names hold ' '"),
        (lambda c: {"classnames": ["cat", "x" * 2_000_000]}, r"class names hold 'x+\.\.\.x+', expected 1 to 1,000 char"),
        (results(accuracy=NAN), "'accuracy' of its results is nan"),
        (results(accuracy="90"), "'accuracy' of its results is '90', expected a number"),
        (results(macro_f1=1e300), "'macro_f1' of its results is"),
        (results(num_images=-1), "'num_images' of its results is -1"),
        (results(num_classes=True), "'num_classes' of its results is True"),
        (results(split=None), "'split' of its results is None"),
        (lambda c: {"results": [["accuracy", 3]]}, "a result of its metadata is .*, expected facts of a test"),
        (decision(sentences=["a {}."], temperature=1e-300), "'temperature' is 1e-300"),
        (decision(sentences=["a {}."] * 300_000), "300,000 sentences, expected at most 1,000"),
        (decision(sentences=["a {}" + "x" * 2000]), "of 2,004 characters, expected up to 1,000"),
        (decision(background=["x"] * 200_000), "200,000 background"),
        (decision(surprise=3), "it has "),
        (comparison(rows=[{**ROW, "agreement": "90"}]), "'agreement' of its comparison is '90'"),
        (comparison(rows=[{**ROW, "error": INFINITY}]), "'error' of its comparison is inf"),
        (comparison(rows=None), "'rows' of its comparison is None"),
        (comparison(verdict=3), "'verdict' of its comparison is 3"),
        (lambda c: {"manifest": {"digest": 3}}, "'digest' of its manifest is 3"),
    ],
)
def test_a_value_that_no_training_writes_is_refused_by_name(sound, change, message, tmp_path):
    tensors, content = sound
    write(tmp_path, tensors, {**content, **change(content)})
    with pytest.raises(BundleError, match=rf"{FILE_NAME}' is not a bundle of prompts: (?s:.)*{message}") as error:
        read_bundle(tmp_path)
    assert len(str(error.value)) < 1000


DAMAGE = {
    "one bit": lambda tensors, content: tensors["ctx"].view(torch.uint8).flatten()[1000].bitwise_xor_(1),
    "a larger vector": lambda tensors, content: tensors["ctx"][0].mul_(1e30),
    "names in another order": lambda tensors, content: content["classnames"].reverse(),
    "another template": lambda tensors, content: content.update(template="a drawing of a {}."),
    "another option": lambda tensors, content: content["options"].update(N_CTX=3),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_bundle_is_refused_if_anything_in_it_is_not_what_was_written(damage, tmp_path):
    folder = untrained_bundle(tmp_path, "CoOp", ["cat", "hot dog"])
    assert read_bundle(folder).classnames == ["cat", "hot dog"]
    with safe_open(folder / FILE_NAME, "pt") as file:
        tensors, content = {key: file.get_tensor(key) for key in file.keys()}, json.loads(file.metadata()[KEY])  # noqa: SIM118
    DAMAGE[damage](tensors, content)
    write(folder, tensors, content)
    with pytest.raises(BundleError, match="are not those that were written: it is damaged or was edited"):
        kdpl.load(folder, "cpu")


def test_a_bundle_without_a_digest_is_read_with_a_line_and_a_template_without_a_name_is_not(sound, tmp_path, capsys):
    tensors, content = sound
    assert read_bundle(write(tmp_path, tensors, content)).template == content["template"]
    assert "carries no digest, so that damage to it is not seen" in capsys.readouterr().err
    with pytest.raises(BundleError, match=r"the sentence 'a photo.' does not hold one '{}'"):
        read_bundle(write(tmp_path, tensors, {**content, "template": "a photo."}))


@pytest.mark.parametrize("key", ["classnames", "mean"])  # at the top, and within the preprocessing
def test_a_key_that_stands_twice_is_refused(sound, key, tmp_path):
    """Each reader would take another of the two values."""
    text = json.dumps(sound[1]).replace(f'"{key}": ', f'"{key}": [0.5, 0.5, 0.5], "{key}": ', 1)
    save_file(sound[0], tmp_path / FILE_NAME, {KEY: text})
    with pytest.raises(BundleError, match=f"its metadata is not JSON .the key '{key}' stands in it twice"):
        read_bundle(tmp_path)


def test_sound_facts_are_read(sound, tmp_path):
    tensors, content = sound
    facts = {"results": [RESULT], "comparison": TABLE, "decision": {"sentences": ["a {}."], "temperature": 2}}
    bundle = read_bundle(write(tmp_path, tensors, {**content, **facts}))
    assert (bundle.results, bundle.comparison, bundle.decision.temperature) == ([RESULT], TABLE, 2)


def test_a_bundle_of_too_many_names_is_refused_at_once(sound, tmp_path):
    tensors, content = sound
    write(tmp_path, tensors, {**content, "classnames": [f"name {i}" for i in range(200_000)]})
    start = time.process_time()
    with pytest.raises(BundleError, match="it has 200,000 class names, expected at most 100,000"):
        kdpl.load(tmp_path, "cpu")
    assert time.process_time() - start < 5


@pytest.mark.parametrize("value", [torch.full((4, 128), 1e300, dtype=torch.float64), torch.full((4, 128), INFINITY)])
def test_parameters_that_fp32_does_not_hold_are_refused(sound, value, tmp_path):
    write(tmp_path, {"ctx": value}, sound[1])
    with pytest.raises(BundleError, match="ctx holds NaN, values that fp32 does not hold"):
        read_bundle(tmp_path)


def test_an_output_that_is_not_finite_is_an_error_and_never_a_prediction(sound, tmp_path, capsys):
    """Prompts of 1e38 are finite, and overflow in the text tower."""
    write(tmp_path, {"ctx": torch.full((4, 128), 3e38)}, sound[1])
    classifier, image = kdpl.load(tmp_path, "cpu"), str(image_file(tmp_path / "image.png"))
    for function in (classifier, classifier.logits, lambda images: list(classifier.stream(images))):
        with pytest.raises(
            NotFiniteError, match=r"hold NaN or infinite values, which is no prediction: .* prompts are damaged"
        ):
            function([image])
    with pytest.raises(NotFiniteError, match="text features"):
        _ = classifier.text_features
    assert predict.main([image, "--prompts", str(tmp_path), "--csv", str(tmp_path / "p.csv"), "--device", "cpu"]) == 2
    assert "error: The logits hold NaN" in capsys.readouterr().err and not (tmp_path / "p.csv").exists()


@pytest.mark.slow
def test_an_evaluation_of_weights_that_overflow_has_no_accuracy(tmp_path):
    from support.trainings import SMALL, build

    run = build("KDPL_CoOp", tmp_path, *SMALL)
    with torch.no_grad():
        next(run.student.learned.parameters()).fill_(3e38)
    with pytest.raises(NotFiniteError, match=r"logits of the test images hold NaN .* there is no accuracy"):
        run.test()
    assert not (tmp_path / "results.json").exists()
