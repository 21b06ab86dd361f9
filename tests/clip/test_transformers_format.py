"""CLIPs in the format of Hugging Face's transformers load with its features, or are refused in one true sentence."""

import json

import pytest
import torch
import torch.nn.functional as F

from kdpl.clip import ModelNameError, describe, load_clip
from kdpl.clip.preprocessing import OPENAI_MEAN

TEXT = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
VISION = {"hidden_size": 96, "intermediate_size": 200, "num_hidden_layers": 2, "num_attention_heads": 3, "patch_size": 8}
CONFIG = {
    "model_type": "clip", "projection_dim": 40, "text_config": TEXT, "vision_config": {**VISION, "image_size": 32},
}  # fmt: skip
PROCESSOR = {
    "do_resize": True, "size": {"shortest_edge": 32}, "do_center_crop": True, "crop_size": {"height": 32, "width": 32},
    "do_rescale": True, "do_normalize": True, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.2, 0.3], "resample": 2,
}  # fmt: skip
TEXTS = ["a photo of a cat.", "dog"]


def written(folder, config=CONFIG, processor=None):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if processor:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def library_model(activation):
    """A CLIPModel of transformers, all of whose weights and biases show."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed (kdpl[hf])")
    parts = {part: {**CONFIG[part], "hidden_act": activation} for part in ("text_config", "vision_config")}
    torch.manual_seed(3)
    model = transformers.CLIPModel(transformers.CLIPConfig(**parts, projection_dim=40)).eval().requires_grad_(False)
    for value in model.parameters():
        value.add_(0.05 * torch.randn_like(value))
    return model


def assert_same_features(clip, model):
    images, ids = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)), clip.tokenizer(TEXTS)
    for ours, theirs in (
        (clip.image_features(images), model.get_image_features(pixel_values=images)),
        (clip.encode_text(ids), model.get_text_features(input_ids=ids)),
    ):
        features = getattr(theirs, "pooler_output", theirs)  # of transformers 5
        difference = (F.normalize(ours, dim=-1) - F.normalize(features, dim=-1)).abs().max()
        assert difference < 1e-6, difference
    torch.testing.assert_close(clip.logit_scale, model.logit_scale.exp())


@pytest.mark.parametrize("way", ["safetensors", "bin"])
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_a_saved_model_has_the_librarys_features(activation, way, tmp_path):
    model = library_model(activation)
    folder = tmp_path / "clip"
    if way == "bin":
        model.config.save_pretrained(folder)
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    else:
        model.save_pretrained(folder)
    name = str(folder)
    assert_same_features(load_clip(name), model)
    a = describe(name)
    assert (a.resolution, a.vision_depth, a.text_depth, a.context_length) == (32, 2, 2, 77)


def test_images_are_prepared_as_the_processor_says(tmp_path, capsys):
    p = describe(str(written(tmp_path / "a", processor=PROCESSOR))).preprocessing
    assert (p.size, p.interpolation, p.resize_mode, p.mean) == ((32, 32), "bilinear", "shortest", (0.5, 0.4, 0.3))
    squash = {**PROCESSOR, "size": {"height": 32, "width": 32}, "do_center_crop": False}
    (written(tmp_path / "b") / "processor_config.json").write_text(json.dumps({"image_processor": squash}))
    assert describe(str(tmp_path / "b")).preprocessing.resize_mode == "squash"
    assert capsys.readouterr().out == ""
    assert describe(str(written(tmp_path / "c"))).preprocessing.mean == OPENAI_MEAN
    assert "c' has no preprocessor_config.json: its images are prepared as CLIP's are by default" in capsys.readouterr().out


def text(**change):
    return {**CONFIG, "text_config": {**TEXT, **change}}


@pytest.mark.parametrize(
    ("config", "processor", "message"),
    [
        ({"model_type": "siglip"}, None, "is a 'siglip' of transformers, .* kdpl models siglip lists them"),
        (text(hidden_act="relu"), None, "'hidden_act' is 'relu' in its text_config, .* expected quick_gelu or gelu"),
        (text(hidden_act="gelu"), None, "has another activation"),
        (text(num_attention_heads=5), None, "divisible by num_heads"),
        (text(vocab_size=21128), None, "'vocab_size' is 21128"),
        (CONFIG, {**PROCESSOR, "size": {"shortest_edge": 36}}, "prepares images in another way than resizing to 32 pixels"),
        (CONFIG, {**PROCESSOR, "resample": 1}, "Pillow's filter 1"),
    ],
)  # fmt: skip
def test_what_would_have_other_features_is_refused(config, processor, message, tmp_path):
    with pytest.raises(ModelNameError, match=message):
        describe(str(written(tmp_path, config, processor)))
