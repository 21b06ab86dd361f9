"""TaskRes: class vectors by the paper's formula, for the learned names alone, and nothing but them in a step."""

import pytest
import torch
import torch.nn.functional as F
from support.trainings import SMALL, build

from kdpl.clip.loading import load_clip
from kdpl.config.manifest import OtherRunError
from kdpl.students import TaskRes

NAMES = ["pizza", "hot_dog", "banana"]
IN_PROCESS = ("DATALOADER.NUM_WORKERS", 0)


@pytest.fixture(scope="module")
def clip():
    return load_clip("emoji_student")


def moved(clip, names=NAMES, **options):
    student = TaskRes(clip, options, names)
    torch.nn.init.normal_(student.learned.text_feature_residuals, generator=torch.Generator().manual_seed(0))
    return student


def base_of(clip, sentences):
    """Unnormalised text features by the library's own text tower."""
    with torch.no_grad():
        return clip.model.encode_text(clip.tokenizer(sentences).to(clip.device)).float()


def in_double(run, batch, residuals):
    """Loss of a batch by the formula of the papers, in float64, and its gradient by the residuals."""
    clip, scale = run.clip, run.student.logit_scale.double()
    sentences = [run.template().format(name.replace("_", " ")) for name in run.class_names]
    x = residuals.double().requires_grad_()
    t = base_of(clip, sentences).double() + run.student.options.RESIDUAL_SCALE * x
    images = run.normalize(batch["img"].to(run.device))
    with torch.no_grad():
        f = F.normalize(clip.image_features(images).double(), dim=-1)
    logits = scale * f @ (t / t.norm(dim=-1, keepdim=True)).T
    if not run.distilled:
        loss = -logits.log_softmax(-1)[range(len(images)), batch["label"]].mean()
    else:
        teacher = run.objective.teacher
        with torch.no_grad():
            seen = F.normalize(teacher.clip.image_features(teacher.adapt(images)).double(), dim=-1)
            texts = F.normalize(base_of(teacher.clip, sentences).double(), dim=-1)
        log_p, log_q = (scale * seen @ texts.T).log_softmax(-1), logits.log_softmax(-1)
        loss = 0.5 * ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(-1).mean()
    (gradient,) = torch.autograd.grad(loss, x)
    return loss.item(), gradient


@pytest.mark.parametrize("trainer", ["TaskRes", "KDPL_TaskRes"])
@pytest.mark.parametrize("scale", [0.5, 1.5])
def test_loss_and_gradient_are_those_of_the_formula(trainer, scale, tmp_path):
    run = build(trainer, tmp_path, *IN_PROCESS, "TRAINER.TASKRES.RESIDUAL_SCALE", scale, "DATALOADER.TRAIN_X.BATCH_SIZE", 8)
    residuals = run.student.learned.text_feature_residuals
    residuals.data.copy_(torch.randn(residuals.shape, generator=torch.Generator().manual_seed(3)))
    run.set_model_mode("train")
    batch = next(iter(run.train_loader_x))
    loss, terms = run.compute_loss(batch)
    loss.backward()
    expected, gradient = in_double(run, batch, residuals.detach())
    assert loss.item() == pytest.approx(expected, rel=1e-5) and terms["loss"].item() == pytest.approx(expected, rel=1e-5)
    assert (residuals.grad.double() - gradient).norm() < 1e-5 * gradient.norm()


def test_before_the_first_step_it_is_zero_shot_clip_exactly(tmp_path):
    run, zero_shot = build("KDPL_TaskRes", tmp_path / "a", *IN_PROCESS), build("ZeroshotCLIP", tmp_path / "b", *IN_PROCESS)
    assert not run.student.learned.text_feature_residuals.any()
    images = run.parse_batch_test(next(iter(run.test_loader)))[0]
    assert torch.equal(run.model_inference(images), zero_shot.model_inference(images))


def test_names_that_were_learned_are_looked_up_in_any_order_and_others_are_refused(clip):
    student = moved(clip)
    whole = student.text_features(student.prepare(NAMES))
    some = student.text_features(student.prepare(["banana", "hot dog"]))
    assert torch.equal(some, whole[[2, 1]])
    with pytest.raises(ValueError, match=r"TaskRes is class-specific: it learned a vector for each of 3 .*'sushi'. are not"):
        student.prepare(["pizza", "sushi"])
    with pytest.raises(ValueError, match="some of them are the same"):
        moved(clip, ["pizza", "hot dog", "hot_dog"]).prepare(["pizza"])
    with pytest.raises(ValueError, match="needs their names"):
        TaskRes(clip)


@pytest.mark.slow
def test_prompts_are_not_evaluated_with_another_sentence_or_other_classes(tmp_path):
    build("KDPL_TaskRes", tmp_path / "a", *SMALL, *IN_PROCESS, "OPTIM.MAX_EPOCH", 1).train()
    for options, what in (
        (("DATASET.TEMPLATE", "an icon of a {}."), "template: "),
        (("DATASET.SUBSAMPLE_CLASSES", "new"), "class names: "),
    ):
        with pytest.raises(OtherRunError, match=what):
            build("KDPL_TaskRes", tmp_path / "b", *IN_PROCESS, *options).load_model(str(tmp_path / "a"))


def test_classes_must_be_known(tmp_path):
    with pytest.raises(ValueError, match="CLASS_AGNOSTIC True: TaskRes learns something for each class"):
        build("KDPL_TaskRes", tmp_path, "TRAINER.KDPL.CLASS_AGNOSTIC", True)
    with pytest.raises(ValueError, match=r"RESIDUAL_SCALE is 0\.0"):
        build("KDPL_TaskRes", tmp_path, "TRAINER.TASKRES.RESIDUAL_SCALE", 0.0)
