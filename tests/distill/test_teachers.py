"""Teachers as users want them: several sentences, several CLIPs, learned prompts. The default stays the published one."""

import pytest
import torch
import torch.nn.functional as F
from support import mostly_slow, random_clip, untrained_bundle
from support.trainings import NOUNS, assert_same, build, parameters

import kdpl
from kdpl.clip.loading import load_clip
from kdpl.clip.model import Clip
from kdpl.clip.preprocessing import Preprocessing
from kdpl.config.keys import ConfigError
from kdpl.config.manifest import OtherRunError
from kdpl.distill import Distillation, Ensemble, PromptedTeacher, Teacher, distillation_loss
from kdpl.distill.loss import mean_logits
from kdpl.distill.selection import select_names
from kdpl.students import CoOp
from kdpl.trainers.teachers import check_teacher

NAMES = ["pizza", "hot_dog", "banana", "fish"]
THREE = ["a photo of a {}.", "an icon of a {}.", "{}, drawn."]
BOTH = "emoji_teacher + emoji_student"
KEYS = "TRAINER.KDPL.TEACHER", "TRAINER.KDPL.TEACHER_TEMPLATES", "TRAINER.KDPL.TEACHER_PROMPTS"
TEACHER, TEMPLATES, PROMPTS = KEYS
FP32 = ("TRAINER.KDPL.PREC", "fp32", "TEST.NO_TEST", True)


@pytest.fixture(scope="module")
def clips():
    return {name: load_clip(name) for name in ("emoji_teacher", "emoji_student")}


@pytest.fixture(scope="module")
def student(clips):
    torch.manual_seed(1)
    return CoOp(clips["emoji_student"], {"CTX_INIT": "a photo of a"})


@pytest.fixture(scope="module")
def images():
    return torch.randn(5, 3, 64, 64, generator=torch.Generator().manual_seed(4))


@pytest.fixture
def sentences(tmp_path):
    path = tmp_path / "sentences.txt"
    path.write_text("\n".join(["", *THREE, ""]), encoding="utf-8")
    return path


def teacher_of(clip, template=THREE[0], names=NAMES, **kwargs):
    return Teacher(clip, names, template, clip.mean, clip.std, **kwargs)


def moved(folder, variant, names=("cat", "dog"), **options):
    """Write the prompts of a learner for emoji_student, away from where they start."""
    from kdpl.bundle import read_bundle, write_bundle

    bundle = read_bundle(untrained_bundle(folder, variant, list(names), **options))
    generator = torch.Generator().manual_seed(7)
    for value in bundle.parameters.values():
        value.add_(0.05 * torch.randn(value.shape, generator=generator))
    write_bundle(folder, bundle)
    return folder


# ----------------------------------------------------------------------------------------------------------- sentences


def test_several_sentences_are_the_normalised_mean_of_normalised_features(clips):
    model = random_clip(3, 32, 64, 1, 64, 32, 77, 49408, 64, 1, 2)
    with torch.no_grad():
        model.ln_final.bias.normal_()  # so that the features of sentences differ in their lengths
    clip = Clip(model, "random", Preprocessing((64, 64)), clips["emoji_teacher"].tokenizer)
    each = []
    for sentence in THREE:
        ids = clip.tokenizer([sentence.replace("{}", name.replace("_", " ")) for name in NAMES])
        each.append(clip.model.encode_text(ids).detach().double())
    unit = [F.normalize(features, dim=-1) for features in each]
    expected, other = (F.normalize(torch.stack(features).mean(0), dim=-1) for features in (unit, each))
    torch.testing.assert_close(teacher_of(clip, THREE).text_features.double(), expected, atol=1e-6, rtol=1e-6)
    assert (expected - other).abs().max() > 1e-4, "the mean of features that are not normalised is another"


# ------------------------------------------------------------------------------------------------------ several teachers


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("scale", ["student", "own", "37.5"])
def test_the_loss_of_several_is_that_of_the_mean_of_their_distributions(clips, student, images, temperature, scale):
    objective = Distillation(student, list(clips.values()), NAMES, temperature=temperature, logit_scale=scale)
    loss, _ = objective(images)
    total = torch.zeros(len(images), len(NAMES), dtype=torch.float64)
    for clip in clips.values():
        member = teacher_of(clip)
        factor = {"student": student.logit_scale, "own": clip.logit_scale}.get(scale, 37.5)
        cosines = member.image_features(images).double() @ member.text_features.double().T
        total += (float(factor) * cosines / temperature).softmax(-1)
    p = total / len(clips)
    s = student(images, student.prepare(NAMES)).logits.detach().double() / temperature
    q = s.softmax(-1)
    expected = temperature**2 * (0.5 * (p * (p / q).log()).sum(-1) + 0.5 * (q * (q / p).log()).sum(-1)).mean()
    torch.testing.assert_close(loss.detach().double(), expected, atol=1e-5, rtol=1e-5)


def test_names_are_selected_by_the_mean_and_learned_by_the_members_distributions_over_them(clips, student, images):
    names = list(dict.fromkeys([*NAMES, *NOUNS[:6]]))  # equal ones would be ties
    members = [teacher_of(clip, names=names) for clip in clips.values()]
    objective = Distillation(student, members, names, k_max=3, temperature=2.0)
    logits = [m.logits(m.image_features(images), student.logit_scale) for m in members]
    mean = sum(l.softmax(-1).mean(0) for l in logits) / 2
    chosen, probabilities = select_names(torch.stack(logits), 3)
    assert chosen.tolist() == mean.argsort(descending=True)[:3].tolist()
    torch.testing.assert_close(probabilities, mean[chosen])
    p = sum((l[:, chosen].double() / 2).softmax(-1) for l in logits) / 2
    output = student(images, student.prepare([names[i] for i in chosen.tolist()])).logits.detach().double()
    expected = distillation_loss(output, 2 * p.log(), temperature=2.0)["loss"]
    torch.testing.assert_close(objective(images)[0].detach(), expected.float(), atol=1e-5, rtol=1e-5)


def test_members_share_their_names(clips):
    clip = clips["emoji_teacher"]
    assert len(Ensemble([teacher_of(clip), teacher_of(clip, THREE)]).members) == 2
    with pytest.raises(ValueError, match="names differ: 4 and 2"):
        Ensemble([teacher_of(clip), teacher_of(clips["emoji_student"], names=["a", "b"])])


# ------------------------------------------------------------------------------------------------------------- prompts

OPTIONS = {
    "CoOp": {},
    "KgCoOp": {},
    "CoCoOp": {},
    "VPT": {"PROMPT_DEPTH_VISION": 2},
    "MaPLe": {"PROMPT_DEPTH": 2},
    "IVLP": {"PROMPT_DEPTH_VISION": 2, "PROMPT_DEPTH_TEXT": 2},
    "PromptSRC": {"PROMPT_DEPTH_VISION": 2, "PROMPT_DEPTH_TEXT": 2},
}


@pytest.mark.parametrize("variant", mostly_slow(OPTIONS, "CoOp", "CoCoOp"))
def test_a_teacher_with_prompts_gives_the_classifiers_own_logits(variant, tmp_path, images):
    folder = moved(tmp_path / "prompts", variant, **OPTIONS[variant])
    run = build("KDPL_CoOp", tmp_path / "out", TEACHER, "emoji_student", PROMPTS, folder, *FP32)
    teacher = run.objective.teacher
    assert isinstance(teacher, PromptedTeacher)
    classifier, images = kdpl.load(folder, run.device), images.to(run.device)
    classifier.classnames = run.class_names
    expected = classifier.logits_of(classifier.encoder.image_features(images))
    features = teacher.image_features(images)
    logits = teacher.logits(features, run.student.logit_scale)
    torch.testing.assert_close(logits.cpu(), expected, atol=1e-4, rtol=1e-5)
    plain = teacher_of(teacher.clip, names=run.class_names)
    assert (plain.logits(plain.image_features(images), run.student.logit_scale) - logits).abs().max() > 0.05
    before = parameters(run)
    run.objective(images)[0].backward()
    assert all(p.grad is None for p in teacher.prompts.parameters())
    assert_same(parameters(run), before)


def check(tmp_path, *options):
    from support import config

    cfg = config("KDPL_CoOp", "emoji_meals", tmp_path / "out", *options)
    check_teacher(cfg)


def test_prompts_that_cannot_be_used_are_refused_before_anything_is_loaded(tmp_path, monkeypatch, sentences):
    monkeypatch.setattr("kdpl.trainers.teachers.load_clip", None)
    coop, one = moved(tmp_path / "coop", "CoOp"), (TEACHER, "emoji_student", PROMPTS)
    check(tmp_path, *one, coop)
    for options, message in (
        ((*one, tmp_path / "none"), "TEACHER_PROMPTS '.*none': There is no"),
        ((TEACHER, BOTH, PROMPTS, coop), "has 1 folders for 2 teachers, emoji_teacher, emoji_student: expected one for each"),
        ((*one, f"{coop} + {coop}"), "has 2 folders for 1 teachers"),
        ((*one, coop, TEMPLATES, "imagenet"), "TEACHER_PROMPTS .* and TEACHER_TEMPLATES 'imagenet' contradict"),
        ((TEACHER, "RN50", PROMPTS, coop), r"do not fit 'RN50': the prompts take images of \(64, 64\)"),
        ((TEMPLATES, "nowhere.txt"), "TEACHER_TEMPLATES 'nowhere.txt': expected 'dataset', 'imagenet' or a file"),
    ):
        with pytest.raises(ConfigError, match=message):
            check(tmp_path, *options)


# ------------------------------------------------------------------------------------------------------------ the caches

VIEWS = ("TRAINER.KDPL.VIEWS", 1, "OPTIM.MAX_EPOCH", 1, *FP32)


@pytest.mark.slow
def test_features_of_prompted_and_plain_towers_are_never_mixed(tmp_path):
    views = (*VIEWS, "TRAINER.KDPL.CACHE_DIR", tmp_path / "cache", TEACHER, "emoji_student")
    images = moved(tmp_path / "images", "VPT", PROMPT_DEPTH_VISION=2)
    text = moved(tmp_path / "text", "CoOp")

    def known(name, *options):
        run = build("KDPL_VPT", tmp_path / name, *views, *options)  # its own tower is not frozen: one cache, the teacher's
        run.load_for_training()
        return [int(features.known.sum()) for features in run.view_features]

    build("KDPL_VPT", tmp_path / "plain", *views).train()
    assert known("text", PROMPTS, text) == known("again") != [0], "text prompts leave the image tower as it is"
    assert known("prompted", PROMPTS, images) == [0]
    build("KDPL_VPT", tmp_path / "trained", *views, PROMPTS, images).train()
    assert known("prompted again", PROMPTS, images) != [0]
    moved(tmp_path / "images", "VPT", PROMPT_DEPTH_VISION=2, N_CTX_VISION=3)
    assert known("changed", PROMPTS, images) == [0], "other prompts in the same folder"


# ------------------------------------------------------------------------------------- manifest, resuming, reports


@pytest.mark.slow
def test_a_folder_is_not_resumed_with_another_teacher(tmp_path, sentences):
    prompts = moved(tmp_path / "prompts", "CoOp")
    prompted = (*FP32, "OPTIM.MAX_EPOCH", 1, TEACHER, "emoji_student", PROMPTS, prompts)
    build("KDPL_CoOp", tmp_path / "prompted", *prompted).train()
    moved(prompts, "CoOp", CTX_INIT="an icon of a")
    with pytest.raises(OtherRunError, match="teacher's prompts: "):
        build("KDPL_CoOp", tmp_path / "prompted", *prompted).train()
    one = (*FP32, "OPTIM.MAX_EPOCH", 1, TEMPLATES, sentences)
    build("KDPL_CoOp", tmp_path / "out", *one).train()
    sentences.write_text("\n".join(THREE[::-1]))
    with pytest.raises(OtherRunError, match=r"teacher's sentences: 3 \(.*\) in the folder, 3 \(.*\) now"):
        build("KDPL_CoOp", tmp_path / "out", *one).train()


# ------------------------------------------------------------------------------------------------------ the other commands


@pytest.mark.parametrize("kind", mostly_slow(["several", "sentences", "prompts"], sample=("several", "prompts")))
def test_zeroshot_teacher_evaluates_the_configured_teacher(kind, tmp_path):
    folder = moved(tmp_path / "prompts", "CoOp")
    options = {
        "several": (TEACHER, BOTH, "TRAINER.KDPL.TEMPERATURE", 3.0),
        "sentences": (TEMPLATES, "imagenet"),
        "prompts": (TEACHER, "emoji_student", PROMPTS, folder),
    }[kind]
    run = build("ZeroshotTeacher", tmp_path / "out", *FP32, *options)
    images, _ = run.parse_batch_test(next(iter(run.test_loader)))
    logits = run.logits(images)
    trained = build("KDPL_CoOp", tmp_path / "trained", *FP32, *options)
    teacher = trained.objective.teacher
    target = mean_logits(teacher.logits(teacher.image_features(images), trained.student.logit_scale), 3.0)
    if kind == "several":
        torch.testing.assert_close(logits, target)
    else:
        torch.testing.assert_close(logits / teacher.clip.logit_scale, target / trained.student.logit_scale)
    assert run.teacher_name() == trained.teacher_name()
    trained.load_for_training()
    shared = [key for key in trained.manifest.facts if key.startswith("teacher's")]
    assert {key: run.manifest.facts[key] for key in shared} == {key: trained.manifest.facts[key] for key in shared}
    assert run.manifest.facts["clip"] == trained.manifest.facts["teacher"] and len(shared) == (kind != "several")


def test_features_of_another_shape_are_no_ensemble(clips):
    with pytest.raises(ValueError, match=r"gave image features \(5, 2, 128\), expected \(B, d\)"):
        teacher_of(clips["emoji_teacher"]).logits(torch.zeros(5, 2, 128), torch.ones(()))
