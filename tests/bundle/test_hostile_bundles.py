"""Bundles from elsewhere: what is no bundle, damaged, or cannot be used is refused by name, and NaN is never a prediction."""

import json
import random

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from support import image_file, untrained_bundle

import kdpl
from kdpl import predict
from kdpl.bundle import FILE_NAME, KEY, BundleError, _digest, read_bundle
from kdpl.clip.model import NotFiniteError

NAN, INFINITY = float("nan"), float("inf")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return untrained_bundle(tmp_path_factory.mktemp("sound"), "CoOp", ["cat", "hot dog"])


@pytest.fixture
def parts(bundle):
    """The tensors and the metadata of a bundle, with its digest."""
    with safe_open(bundle / FILE_NAME, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, json.loads(file.metadata()[KEY])  # noqa: SIM118


def write(folder, tensors, content, digest=True):
    """Write a bundle, with a digest that fits what is in it, as the writer of a fork would."""
    if digest:
        content = {key: value for key, value in content.items() if key != "digest"}
        content["digest"] = _digest(tensors, content)
    save_file(tensors, folder / FILE_NAME, {KEY: json.dumps(content)})
    return folder


def refused(folder, message):
    with pytest.raises(BundleError, match=message) as error:
        read_bundle(folder)
    assert str(folder / FILE_NAME) in str(error.value) and len(str(error.value)) < 1000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"preprocessing": {"size": [2**40, 2**40]}}, "'size' of the preprocessing is"),
        ({"classnames": "cat"}, "'classnames' is 'cat', expected list"),
        ({"classnames": ["cat", " "]}, "'classnames' holds ' '"),
        ({"classnames": ["cat", "x" * 2_000_000]}, "'classnames' holds 'x+.*, expected 1 to 1,000 char"),
        ({"classnames": [f"name {i}" for i in range(200_000)]}, "'classnames' has 200,000 entries"),
        ({"template": "a photo."}, "the sentence 'a photo.' does not hold one '{}'"),
        ({"decision": {"temperature": 1e-300}}, "'temperature' of the decision is 1e-300"),
        ({"decision": {"surprise": 3}}, "unexpected keyword argument 'surprise'"),
        ({"format": 3, "kdpl_version": "9.9"}, "of format 3, .* Install a newer kdpl, such as 9.9"),
        ({"variant": "CoOpp"}, "'CoOpp' is not one of .* Did you mean 'CoOp'"),
    ],
)
def test_a_value_that_no_training_writes_is_refused_by_name(parts, change, message, tmp_path):
    refused(write(tmp_path, parts[0], {**parts[1], **change}), message)


def test_what_is_no_bundle_is_refused_by_name(bundle, parts, tmp_path):
    refused(tmp_path, "There is no .* when it ends")
    whole = (bundle / FILE_NAME).read_bytes()
    for broken in (b"", whole[:-100], b"PK\x03\x04" + bytes(200)):
        (tmp_path / FILE_NAME).write_bytes(broken)
        refused(tmp_path, "truncated or not of safetensors")
    save_file(parts[0], tmp_path / FILE_NAME)
    refused(tmp_path, "has no metadata 'kdpl'")
    save_file(parts[0], tmp_path / FILE_NAME, {KEY: "[" * 100_000})
    refused(tmp_path, "not JSON")
    refused(write(tmp_path, parts[0], {k: v for k, v in parts[1].items() if k != "variant"}), "missing .* argument: 'variant'")
    for values in (torch.full((4, 128), NAN), torch.full((4, 128), 1e300, dtype=torch.float64), torch.zeros(4, 128).int()):
        refused(
            write(tmp_path, {"ctx": values}, parts[1]), "ctx holds NaN, values that fp32 does not hold, or no floating-point"
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
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_bundle_is_refused_if_anything_in_it_is_not_what_was_written(damage, parts, tmp_path):
    DAMAGE[damage](*parts)
    refused(write(tmp_path, *parts, digest=False), "are not those that were written: it is damaged or was edited")


def test_a_bundle_without_a_digest_is_read_and_a_line_says_so(parts, tmp_path, capsys):
    del parts[1]["digest"]
    assert read_bundle(write(tmp_path, *parts, digest=False)).classnames == ["cat", "hot dog"]
    assert "carry no digest, so that damage to them is not seen" in capsys.readouterr().err


def test_an_output_that_is_not_finite_is_an_error_and_never_a_prediction(parts, tmp_path, capsys):
    """Prompts of 1e38 are finite, and overflow in the text tower."""
    write(tmp_path, {"ctx": torch.full((4, 128), 3e38)}, parts[1])
    classifier, image = kdpl.load(tmp_path, "cpu"), str(image_file(tmp_path / "image.png"))
    for function in (classifier, classifier.logits, lambda images: list(classifier.stream(images))):
        with pytest.raises(NotFiniteError, match=r"hold NaN or infinite values, .* prompts are damaged"):
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
    with pytest.raises(NotFiniteError, match="logits of the test images hold NaN"):
        run.test()
    assert not (tmp_path / "results.json").exists()
