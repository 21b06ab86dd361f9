"""INPUT of the configuration follows the student or is refused; teachers and bundles prepare images their own way."""

import json
import re

import numpy as np
import open_clip
import pytest
import torch
import yaml
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from safetensors.torch import save_file
from support import ROOT, config

import kdpl
from kdpl.bundle import read_bundle
from kdpl.config.keys import ConfigError

MOBILE = {"mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0], "interpolation": "bilinear", "resize_mode": "shortest"}
SQUASHED = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bicubic", "resize_mode": "squash"}
NAMES = ["red thing", "green thing", "blue thing"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of small open_clip models by preprocessing: a bidirectional text tower, and images of 48 pixels."""
    config_of = {
        "embed_dim": 32,
        "custom_text": True,
        "vision_cfg": {"image_size": 48, "layers": 2, "width": 64, "patch_size": 16},
        "text_cfg": {"context_length": 77, "width": 64, "heads": 1, "layers": 2, "no_causal_mask": True},
    }
    top, folders = tmp_path_factory.mktemp("models"), {}
    for name, preprocess in (("mobile", MOBILE), ("squashed", SQUASHED)):
        folder = top / name
        folder.mkdir()
        torch.manual_seed(7)
        parts = {k: v for k, v in config_of.items() if k != "custom_text"}
        model = open_clip.model.CustomTextCLIP(**parts)
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors")
        (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config_of, "preprocess_cfg": preprocess}))
        folders[name] = str(folder)
    return folders


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of images that are not square."""
    root, generator = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for i, name in enumerate(NAMES):
        for split in (root, root / "test" / name):
            split.mkdir(parents=True, exist_ok=True)
            pixels = generator.integers(0, 256, (60, 130, 3), dtype=np.uint8)
            pixels[:, 20:, i] = 255
            Image.fromarray(pixels).save(split / f"{i}.png")
    (root / "names.txt").write_text("\n".join(NAMES))
    return root


@pytest.fixture
def silent(tmp_path):
    """A trainer configuration that says nothing of what the student decides."""
    content = yaml.safe_load((ROOT / "configs/trainers/KDPL_CoOp/emoji.yaml").read_text())
    for key in ("SIZE", "INTERPOLATION", "PIXEL_MEAN", "PIXEL_STD"):
        del content["INPUT"][key]
    path = tmp_path / "silent.yaml"
    path.write_text(yaml.safe_dump(content))
    return str(path)


def build(trainer, output, photos, backbone, config_file, *options):
    from dassl.engine import build_trainer
    from dassl.utils import set_random_seed

    set_random_seed(1)
    cfg = config(
        trainer, "image_folder", output, "--seed", 1, "--root", photos, "OPTIM.MAX_EPOCH", 1, "TRAIN.PRINT_FREQ", 1000,
        "DATASET.CLASSNAMES", photos / "names.txt", "MODEL.BACKBONE.NAME", backbone, *options, config_file=config_file,
    )  # fmt: skip
    cfg.freeze()
    trainer = build_trainer(cfg)
    return trainer, trainer.cfg


def values(cfg):
    return tuple(cfg.INPUT.SIZE), cfg.INPUT.INTERPOLATION, list(cfg.INPUT.PIXEL_MEAN), list(cfg.INPUT.PIXEL_STD)


def normalised(trainer):
    """Return the first test batch as the model sees it."""
    return trainer.parse_batch_test(next(iter(trainer.test_loader)))[0]


@pytest.mark.slow
def test_what_is_not_set_follows_the_student_everywhere(models, photos, silent, tmp_path):
    trainer, cfg = build("KDPL_CoOp", tmp_path / "out", photos, models["mobile"], silent)
    expected = (48, 48), "bilinear", [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]
    assert values(cfg) == values(trainer.cfg) == expected and cfg.is_frozen()
    images = normalised(trainer)
    assert images.shape[-2:] == (48, 48) and images.min() >= 0 and images.max() <= 1
    trainer.train()
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    written = yaml.safe_load(results["config"])["INPUT"]
    assert (written["INTERPOLATION"], list(written["PIXEL_STD"])) == ("bilinear", [1.0, 1.0, 1.0])
    assert read_bundle(tmp_path / "out").preprocessing == trainer.clip.preprocessing


def test_a_published_file_with_another_student_is_refused_with_both_values_and_the_way_out(models, photos, tmp_path):
    published = f"{ROOT}/configs/trainers/KDPL_CoOp/emoji.yaml"
    with pytest.raises(ConfigError) as caught:
        build("KDPL_CoOp", tmp_path, photos, models["mobile"], published)
    message = str(caught.value)
    assert f"INPUT.SIZE (64, 64) is not what MODEL.BACKBONE.NAME '{models['mobile']}' takes: expected (48, 48)" in message
    assert "INPUT.INTERPOLATION bicubic" in message and "INPUT.PIXEL_STD [0.26862954" in message
    assert "Without these lines in the configuration file INPUT follows the model" in message
    pairs = re.findall(r'(INPUT\.\w+) "([^"]+)"', message)  # as the message says
    _, cfg = build("KDPL_CoOp", tmp_path, photos, models["mobile"], published, *(part for pair in pairs for part in pair))
    assert values(cfg) == ((48, 48), "bilinear", [0.0, 0.0, 0.0], [1.0, 1.0, 1.0])


@pytest.mark.slow
def test_a_squashed_students_evaluation_and_bundle_see_the_whole_image(models, photos, silent, tmp_path):
    trainer, _ = build("KDPL_CoOp", tmp_path, photos, models["squashed"], silent)
    image = Image.open(photos / "test" / NAMES[0] / "0.png")
    reference = image_transform_v2(PreprocessCfg(size=48, **SQUASHED), is_train=False)(image)
    torch.testing.assert_close(normalised(trainer)[0].cpu(), reference, atol=1e-5, rtol=0)
    trainer.train()
    bundle = read_bundle(tmp_path)
    assert bundle.preprocessing.resize_mode == "squash"
    classifier = kdpl.load(tmp_path, "cpu")
    theirs = trainer.model_inference(normalised(trainer))
    torch.testing.assert_close(classifier.logits(image)[0], theirs[0].cpu(), atol=1e-4, rtol=1e-4)
