"""Teachers that are no CLIP: a table of probabilities, and any object with names and logits."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from kdpl.clip.loading import load_clip
from kdpl.distill.given import Probabilities, read_probabilities
from kdpl.distill.objective import Distillation
from kdpl.students import CoOp

NAMES, PATHS = ["cat", "red, dog", "bird"], ["a/1.jpg", "a/2.jpg", "b/3.jpg"]
P = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.25, 0.25, 0.5]])


def write(path, values=P, names=NAMES, paths=PATHS):
    if path.suffix == ".csv":
        head = ",".join(["path", *(f'"{name}"' for name in names)])
        rows = [",".join([p, *(f"{float(x):.9g}" for x in row)]) for p, row in zip(paths, values, strict=True)]
        path.write_text("\n".join([head, *rows]), encoding="utf-8")
    elif path.suffix == ".safetensors":
        save_file({"probabilities": values}, path, {"names": json.dumps(names), "paths": json.dumps(paths)})
    else:
        np.savez(path, names=names, paths=paths, probabilities=values.numpy())
    return path


@pytest.mark.parametrize("kind", ["csv", "npz", "safetensors"])
def test_a_table_gives_each_image_its_own_distribution_in_any_order(tmp_path, kind):
    table = read_probabilities(write(tmp_path / f"p.{kind}"))
    assert table.names == NAMES
    torch.testing.assert_close(table.logits([PATHS[2], PATHS[0]]).softmax(1), P[[2, 0]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values": P * 2}, r"'a/1.jpg' add up to 2 .* Logits become probabilities by a softmax"),
        ({"values": P.masked_fill(P == 0.8, float("nan"))}, "'a/2.jpg' add up to nan"),
        ({"values": torch.tensor([[1.5, -0.5, 0.0]]).expand(3, 3)}, r"least -0\.5"),
        ({"paths": ["a/1.jpg", "a/2.jpg", "a/1.jpg"]}, "'a/1.jpg' twice"),
    ],
)  # fmt: skip
def test_what_is_no_distribution_is_refused_by_the_name_of_the_image(tmp_path, change, message):
    with pytest.raises(ValueError, match=rf"p\.csv.*{message}"):
        read_probabilities(write(tmp_path / "p.csv", **change))


def test_other_names_another_order_and_missing_images_are_refused(tmp_path):
    table = read_probabilities(write(tmp_path / "p.npz"))
    table.check(NAMES, PATHS)
    for names, keys, message in (
        (["red, dog", "cat", "bird"], PATHS, "column 0 is 'cat': expected 'red, dog'"),
        (["cat", "red, dog", "fish"], PATHS, "column 2 is 'bird': expected 'fish'"),
        ([*NAMES, "fish"], PATHS, "column 3 is 'none': expected 'fish'"),
        (NAMES, [*PATHS, "c/4.jpg"], "no row for 1 of 4 training images, such as 'c/4.jpg'"),
    ):
        with pytest.raises(ValueError, match=message):
            table.check(names, keys)


def test_the_loss_is_the_divergence_from_the_given_probabilities(golden_clips):
    student = CoOp(load_clip(golden_clips[0]), names=NAMES)
    images = torch.randn(2, 3, 64, 64)
    table = Probabilities(NAMES, PATHS, P)
    loss, _ = Distillation(student, table, NAMES)(images, teacher_features=[PATHS[1], PATHS[0]])
    log_s = student(images, student.prepare(NAMES)).logits.log_softmax(1)
    log_t = P[[1, 0]].log()
    expected = 0.5 * ((log_t.exp() - log_s.exp()) * (log_t - log_s)).sum(1).mean()
    torch.testing.assert_close(loss, expected)


def test_any_object_with_names_and_logits_is_a_teacher_of_images(golden_clips):
    class Colours:
        names = NAMES

        def logits(self, images):
            return 10 * images.mean((2, 3))

    student = CoOp(load_clip(golden_clips[0]), names=NAMES)
    images = torch.randn(2, 3, 64, 64)
    loss, terms = Distillation(student, Colours(), NAMES)(images)
    assert loss > 0 and set(terms) == {"loss", "loss_kl_forward", "loss_kl_reverse"}
    Colours.logits = lambda self, images: images.mean((2, 3))[:, :2]
    with pytest.raises(ValueError, match=r"Colours returned logits \(2, 2\) for 2 images and 3 names"):
        Distillation(student, Colours(), NAMES)(images)
    with pytest.raises(ValueError, match="names differ"):
        Distillation(student, Colours(), ["cat", "dog", "cow"])


def test_values_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"values \(9, 1\) for 3 images and 3 names"):
        Probabilities(NAMES, PATHS, torch.full((9, 1), 1 / 3))
