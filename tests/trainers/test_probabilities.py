"""A table of probabilities as the teacher of a run: TRAINER.KDPL.TEACHER probabilities:FILE."""

import numpy as np
import pytest
import torch
from dassl.engine import build_trainer
from dassl.utils import set_random_seed
from support import config

import kdpl.trainers  # noqa: F401
from kdpl.config.manifest import OtherRunError

SMALL = ("DATASET.NUM_SHOTS", 2, "DATASET.SUBSAMPLE_CLASSES", "base", "OPTIM.MAX_EPOCH", 2, "TRAIN.PRINT_FREQ", 1000)
SMALL += ("TEST.NO_TEST", True)


def build(output, table, *options, trainer="KDPL_CoOp"):
    teacher = ("TRAINER.KDPL.TEACHER", f"probabilities:{table}") if table else ()
    cfg = config(trainer, "emoji_meals", output, "--seed", 1, *SMALL, *teacher, *options)
    set_random_seed(1)
    return build_trainer(cfg)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Keys and class names of the training images, and the zero-shot teacher's probabilities of the images as they are."""
    run = build(tmp_path_factory.mktemp("run"), "")
    items, transform = run.train_loader_x.dataset.data_source, run.test_loader.dataset.transform
    from kdpl.training.batches import read_image

    images = run.normalize(torch.stack([transform(read_image(item.impath)) for item in items]))
    teacher = run.objective.teacher
    p = teacher.logits(teacher.image_features(images), run.clip.logit_scale).softmax(1)
    return run.keys([item.impath for item in items]), run.class_names, p.double()


def write(path, data, **change):
    keys, names, p = (change.get(name, value) for name, value in zip(("keys", "names", "p"), data, strict=True))
    np.savez(path, paths=keys, names=names, probabilities=(p / p.sum(1, keepdim=True)).numpy())
    return path


@pytest.mark.parametrize("views", [0, 1])
def test_each_image_of_a_batch_is_compared_with_its_own_row(data, tmp_path, views):
    run = build(tmp_path / "run", write(tmp_path / "p.npz", data), "TRAINER.KDPL.VIEWS", views)
    batch = next(iter(run.train_loader_x))
    run.load_for_training()
    run.set_model_mode("train")
    loss, _ = run.compute_loss(batch)
    rows = [data[0].index(key) for key in run.keys(batch["impath"])]
    log_t = (data[2] / data[2].sum(1, keepdim=True))[rows].log().float()
    images = run.parse_batch_train(batch)
    log_s = run.student(images, run.student.prepare(data[1])).logits.log_softmax(1)
    torch.testing.assert_close(loss, 0.5 * ((log_t.exp() - log_s.exp()) * (log_t - log_s)).sum(1).mean(), rtol=1e-4, atol=1e-5)


def test_a_run_learns_from_it_and_another_table_is_another_run(data, tmp_path):
    table = write(tmp_path / "p.npz", data)
    run = build(tmp_path / "run", table)
    before = run.student.learned.ctx.detach().clone()
    run.train()
    assert not torch.equal(before, run.student.learned.ctx)
    write(table, data, p=data[2].flip(0))
    with pytest.raises(OtherRunError, match="teacher"):
        build(tmp_path / "run", table, "OPTIM.MAX_EPOCH", 3).train()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: {"keys": d[0][:-1], "p": d[2][:-1]}, "no row for 1 of "),
        (lambda d: {"names": [*d[1][1:], d[1][0]]}, "column 0 is"),
    ],
)
def test_a_table_that_does_not_fit_is_refused_before_the_training(data, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        build(tmp_path / "run", write(tmp_path / "p.npz", data, **change(data))).train()
