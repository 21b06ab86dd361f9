"""A CLIP is its weights and its design, wherever it lies: one with another design is another one, a moved one is the same."""

import json
import shutil
from pathlib import Path

import open_clip
import pytest
import torch
import yaml
from dassl.engine import build_trainer
from safetensors.torch import save_file
from support import config, emoji_settings, mostly_slow, random_clip
from support.trainings import TINY

import kdpl
from kdpl.bundle import BundleError
from kdpl.clip import load_clip
from kdpl.clip.names import resolve
from kdpl.config.manifest import OtherRunError, read_manifest
from kdpl.trainers.teachers import load_towers

MODEL = {
    "embed_dim": 32,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 40, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2},
}
PREPROCESS = {"mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.26862954, 0.26130258, 0.27577711]}
FLIPS = {
    "activation": ("model_cfg", "quick_gelu", False),
    "heads of images": ("vision_cfg", "head_width", 32),
    "heads of texts": ("text_cfg", "heads", 2),
    "activation by tanh": ("text_cfg", "act_kwargs", {"approximate": "tanh"}),
    "epsilon": ("text_cfg", "norm_kwargs", {"eps": 1e-3}),
    "pooling": ("text_cfg", "pool_type", "last"),
    "mask": ("text_cfg", "no_causal_mask", True),
    "tokenizer": ("text_cfg", "tokenizer_kwargs", {"clean": "canonicalize"}),
    "mean": ("preprocess_cfg", "mean", [0.5, 0.5, 0.5]),
    "std": ("preprocess_cfg", "std", [0.5, 0.5, 0.5]),
    "interpolation": ("preprocess_cfg", "interpolation", "bilinear"),
    "resizing": ("preprocess_cfg", "resize_mode", "squash"),
}
BOTH = ("activation", "activation by tanh")


def write_config(folder, flip=""):
    config = json.loads(json.dumps({"model_cfg": MODEL, "preprocess_cfg": PREPROCESS}))
    if flip:
        part, key, value = FLIPS[flip]
        (config if part in config else config["model_cfg"])[part][key] = value
        if flip == "activation by tanh":
            config["model_cfg"]["quick_gelu"] = False
    (folder / "open_clip_config.json").write_text(json.dumps(config))


def write_clip(folder):
    folder.mkdir(parents=True)
    torch.manual_seed(5)
    model = open_clip.model.CLIP(**{key: value for key, value in MODEL.items() if key != "quick_gelu"}, quick_gelu=True)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    write_config(folder)
    return folder


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clips") / "t")


@pytest.fixture
def clip(original, tmp_path):
    """A folder of the hub with a small CLIP, whose configuration may be changed."""
    return Path(shutil.copytree(original, tmp_path / "clips" / "t"))


@pytest.mark.slow
def test_every_part_of_a_design_makes_another_clip_with_caches_of_its_own(clip):
    """A cache of one tower's features is shared with a CLIP that differs in the other tower alone."""
    found = {}
    for flip in ("", *FLIPS):
        write_config(clip, flip)
        loaded = load_clip(str(clip))
        found[flip] = loaded.weights_digest, loaded.identity, loaded.digest("image"), loaded.digest("text")
    weights, identities, _, _ = zip(*found.values(), strict=True)
    assert len(set(weights)) == 1 and len(set(identities)) == len(identities)
    for flip, (_, _, image, text) in found.items():
        of_image = flip in ("heads of images", "mean", "std", "interpolation", "resizing")
        expected = (of_image or flip in BOTH, not of_image) if flip else (False, False)
        assert (image != found[""][2], text != found[""][3]) == expected, flip


@pytest.mark.slow
def test_a_design_is_the_same_in_any_precision_and_from_any_library(tmp_path):
    model = random_clip(5, 32, 32, 2, 64, 16, 77, 49408, 64, 1, 2)
    file = tmp_path / "open_clip_model.safetensors"  # as a folder's weights are called
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, file)
    ours = load_clip(f"openai:{file}")
    config = {**MODEL, "text_cfg": {**MODEL["text_cfg"], "context_length": 77}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": PREPROCESS}))
    for precision in ("fp32", "fp16", "bf16"):
        assert load_clip(str(tmp_path), precision).design == ours.design
    assert load_clip(f"openai:{file}", "fp16").identity == ours.identity


SETTINGS = ("OPTIM.MAX_EPOCH", 1, "DATALOADER.NUM_WORKERS", 0, "TEST.NO_TEST", True)


def run_of(output, student, teacher="emoji_teacher", *options):
    """Return a trainer whose configuration leaves the preparation of images to the student."""
    settings = yaml.safe_load(Path(emoji_settings("KDPL_CoOp")).read_text(encoding="utf-8"))
    settings["INPUT"] = {"TRANSFORMS": settings["INPUT"]["TRANSFORMS"]}
    file = output.parent / "follows.yaml"
    file.write_text(yaml.safe_dump(settings))
    clips = ("MODEL.BACKBONE.NAME", student, "TRAINER.KDPL.TEACHER", teacher)
    cfg = config("KDPL_CoOp", "emoji_meals", output, "--seed", 1, *TINY, *SETTINGS, *clips, *options, config_file=str(file))
    return build_trainer(cfg)


@pytest.mark.parametrize("flip", mostly_slow(["activation", "mean"], sample=("mean",)))
def test_a_student_or_teacher_of_another_design_is_refused_everywhere(flip, clip, tmp_path):
    run_of(tmp_path / "a", clip).train()
    run_of(tmp_path / "b", "emoji_student", clip).train()
    write_config(clip, flip)
    found = r": \w+ in the folder, \w+ now"
    with pytest.raises(OtherRunError, match=rf"student{found}"):
        run_of(tmp_path / "a", clip).train()
    with pytest.raises(OtherRunError, match=rf"teacher{found}"):
        run_of(tmp_path / "b", "emoji_student", clip).train()
    with pytest.raises(OtherRunError, match=rf"student{found}"):
        run_of(tmp_path / "c", clip).load_model(str(tmp_path / "a"))
    with pytest.raises(BundleError, match="has the weights that the prompts were learned for, but computes something else"):
        kdpl.load(tmp_path / "a", "cpu")
    prompted = run_of(tmp_path / "d", "emoji_student", clip, "TRAINER.KDPL.TEACHER_PROMPTS", tmp_path / "a")
    with pytest.raises(Exception, match="computes something else"):
        load_towers(prompted.cfg, "fp32", torch.device("cpu"))


@pytest.mark.slow
def test_where_a_clip_lies_does_not_matter(clip, tmp_path, monkeypatch):
    """A folder that has moved, is given by another path, or by the file of an embedded model."""
    embedded = f"openai:{resolve('emoji_student').path}"
    monkeypatch.chdir(tmp_path)
    run_of(tmp_path / "a", "clips/t", "emoji_student").train()
    digest = read_manifest(tmp_path / "a").digest
    for student in ("./clips/t", clip, tmp_path / "moved"):
        if student == tmp_path / "moved":
            clip.rename(student)
        run = run_of(tmp_path / "a", student, embedded)
        run.train()
        assert run.manifest.digest == digest
    kdpl.load(tmp_path / "a", "cpu", backbone=str(tmp_path / "moved"))
