"""Bundles from elsewhere: what is no bundle, damaged, or cannot be used is refused by name, and NaN is never a prediction."""

import json
import random
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


def parts(folder):
    """The tensors and the metadata of a bundle, with its digest."""
    with safe_open(folder / FILE_NAME, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, json.loads(file.metadata()[KEY])  # noqa: SIM118


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return untrained_bundle(tmp_path_factory.mktemp("sound"), "CoOp", ["cat", "hot dog"])


@pytest.fixture
def sound(bundle):
    """The tensors and the metadata of a bundle without a digest."""
    tensors, content = parts(bundle)
    return tensors, {key: value for key, value in content.items() if key != "digest"}


def write(folder, tensors, content):
    save_file(tensors, folder / FILE_NAME, {KEY: content if isinstance(content, str) else json.dumps(content)})
    return folder


def refused(folder, message):
    with pytest.raises(BundleError, match=message) as error:
        read_bundle(folder)
    assert str(folder / FILE_NAME) in str(error.value) and len(str(error.value)) < 1000


def preprocessing(**change):
    return lambda content: {"preprocessing": {**content["preprocessing"], **change}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (preprocessing(size=[INFINITY, 64]), "'size' of the preprocessing is"),
        (preprocessing(size=[2**40, 2**40]), "'size' of the preprocessing is"),
        (preprocessing(mean=[NAN, 0, 0]), r"'mean' of the preprocessing is \[nan, 0, 0\]"),
        (preprocessing(std=[1e-300] * 3), "'std' of the preprocessing is"),
        (preprocessing(interpolation=["bicubic"]), "'interpolation' of the preprocessing is"),
        (lambda c: {"preprocessing": [64]}, "'preprocessing' is "),
        (lambda c: {"classnames": "cat"}, "'classnames' is 'cat', expected list"),
        (lambda c: {"classnames": [1]}, "expected a list of text"),
        (lambda c: {"classnames": ["cat", " "]}, "class names hold ' '"),
        (lambda c: {"classnames": ["cat", "x" * 2_000_000]}, r"class names hold 'x+\.\.\.x+', expected 1 to 1,000 char"),
        (lambda c: {"epoch": True}, "'epoch' is True, expected int"),
        (lambda c: {"teacher": 3}, "'teacher' is 3, expected str or NoneType"),
        (lambda c: {"template": "a photo."}, "the sentence 'a photo.' does not hold one '{}'"),
        (lambda c: {"decision": {"temperature": 1e-300}}, "'temperature' of the decision is 1e-300"),
        (lambda c: {"decision": {"temperature": True}}, "'temperature' of the decision is True"),
        (lambda c: {"decision": {"sentences": ["a {}" + "x" * 2000]}}, "expected 1 to 1,000 characters"),
        (lambda c: {"decision": {"background": ["x"] * 200_000}}, "has 200,000 'background'"),
        (lambda c: {"decision": {"surprise": 3}}, "unexpected keyword argument 'surprise'"),
        (lambda c: {"format": None}, "names no format"),
        (lambda c: {"format": 3, "kdpl_version": "9.9"}, "of format 3, .* Install a newer kdpl, such as 9.9"),
        (lambda c: {"variant": "CoOpp"}, "'CoOpp' is not one of .* Did you mean 'CoOp'"),
    ],
)
def test_a_value_that_no_training_writes_is_refused_by_name(sound, change, message, tmp_path):
    refused(write(tmp_path, sound[0], {**sound[1], **change(sound[1])}), message)


def test_what_is_no_bundle_is_refused_by_name(bundle, sound, tmp_path):
    refused(tmp_path, "There is no .* when it ends")
    whole = (bundle / FILE_NAME).read_bytes()
    for broken in (b"", whole[:20], whole[:-100], b"PK\x03\x04" + bytes(200)):
        (tmp_path / FILE_NAME).write_bytes(broken)
        refused(tmp_path, "truncated or not of safetensors")
    save_file(sound[0], tmp_path / FILE_NAME)
    refused(tmp_path, "has no metadata 'kdpl'")
    for text, message in (("{", "not JSON"), ("[" * 100_000, "not JSON"), ("[]", "names no format")):
        refused(write(tmp_path, sound[0], text), message)
    refused(write(tmp_path, sound[0], {k: v for k, v in sound[1].items() if k != "variant"}), "lacks variant")
    for value in (NAN, INFINITY, 1e300):
        refused(
            write(tmp_path, {"ctx": torch.full((4, 128), value, dtype=torch.float64)}, sound[1]), "ctx holds NaN, values that"
        )
    refused(
        write(tmp_path, {"ctx": torch.zeros(4, 128, dtype=torch.int32)}, sound[1]), "ctx holds .* no floating-point numbers"
    )


def test_sixty_flipped_bits_of_tensors_and_names_are_all_refused(bundle, tmp_path):
    whole, draws = (bundle / FILE_NAME).read_bytes(), random.Random(1)
    start = 8 + int.from_bytes(whole[:8], "little")  # of the tensors
    names = whole.index(b"cat"), whole.index(b"hot dog") + 7
    places = [draws.randrange(start, len(whole)) for _ in range(40)] + [draws.randrange(*names) for _ in range(20)]
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << draws.randrange(8)
        (tmp_path / FILE_NAME).write_bytes(damaged)
        with pytest.raises(BundleError, match="is not a bundle of prompts"):
            read_bundle(tmp_path)


DAMAGE = {
    "a larger vector": lambda tensors, content: tensors["ctx"][0].mul_(1e30),
    "names in another order": lambda tensors, content: content["classnames"].reverse(),
    "another template": lambda tensors, content: content.update(template="a drawing of a {}."),
    "another option": lambda tensors, content: content["options"].update(N_CTX=3),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_bundle_is_refused_if_anything_in_it_is_not_what_was_written(damage, bundle, tmp_path):
    tensors, content = parts(bundle)
    DAMAGE[damage](tensors, content)
    refused(write(tmp_path, tensors, content), "are not those that were written: it is damaged or was edited")


def test_a_bundle_without_a_digest_is_read_with_a_line(sound, tmp_path, capsys):
    assert read_bundle(write(tmp_path, *sound)).template == sound[1]["template"]
    assert "carries no digest, so that damage to it is not seen" in capsys.readouterr().err


def test_a_bundle_of_too_many_names_is_refused_at_once(sound, tmp_path):
    write(tmp_path, sound[0], {**sound[1], "classnames": [f"name {i}" for i in range(200_000)]})
    start = time.process_time()
    with pytest.raises(BundleError, match="it has 200,000 class names, expected at most 100,000"):
        kdpl.load(tmp_path, "cpu")
    assert time.process_time() - start < 5


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
