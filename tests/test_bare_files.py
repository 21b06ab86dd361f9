"""A file of weights is loaded as what it is or refused: heads, activation, preprocessing and resolution are not guessed."""

import json

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from support import random_clip

from kdpl.clip import ModelNameError, WeightsError, describe, load_clip
from kdpl.clip.names import DECLARED, OPENAI_MODELS, resolve
from kdpl.clip.names.sources import Source
from kdpl.clip.openai import OPENAI_LAYERS, VOCABULARY, check_design, openai_model
from kdpl.clip.openclip.building import build
from kdpl.clip.openclip.models import openai_resnet_layers
from kdpl.clip.openclip.recipe import recipe_of

TINY = {
    "embed_dim": 40,
    "vision_cfg": {"image_size": 64, "layers": 2, "width": 160, "head_width": 80, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}
PREPROCESS = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bilinear", "resize_mode": "squash"}
MODEL, TAG = "ViT-B-32-256", "datacomp_s34b_b86k"


@pytest.fixture
def tiny(monkeypatch):
    """ViT-B-32-256 with its published tag, but small, with heads of 80."""
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, MODEL, TINY)
    torch.manual_seed(3)
    return open_clip.create_model(MODEL).eval()


def saved(model, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, path)
    return path


def hub_folder(model, folder, config=TINY, preprocess=PREPROCESS, file="open_clip_model.safetensors"):
    saved(model, folder / file)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
    return folder


def shapes_of(model):
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


def assert_is(clip, model):
    images = torch.randn(2, 3, clip.resolution, clip.resolution, generator=torch.Generator().manual_seed(0))
    ids = clip.tokenizer(["a photo of a cat.", "dog"])
    torch.testing.assert_close(clip.image_features(images), model.encode_image(images), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(clip.encode_text(ids), model.encode_text(ids), atol=1e-5, rtol=1e-4)


# ------------------------------------------------------------------------------------------------- what lies beside a file


def test_a_file_takes_the_configuration_beside_it(tiny, tmp_path):
    folder = hub_folder(tiny, tmp_path)
    clip = load_clip(str(folder / "open_clip_model.safetensors"))
    assert_is(clip, tiny)
    assert clip.preprocessing == load_clip(str(folder)).preprocessing == describe(str(folder)).preprocessing
    assert (clip.mean, clip.preprocessing.resize_mode) == ((0.5, 0.5, 0.5), "squash")


def test_a_configuration_that_may_be_of_another_file_is_not_used(tiny, tmp_path):
    folder = hub_folder(tiny, tmp_path)
    other = saved(random_clip(1, 40, 64, 2, 128, 16, 77, 49408, 64, 1, 2), folder / "ViT-B-32.safetensors")
    with pytest.raises(ModelNameError, match=r"it is not clear whether it describes 'ViT-B-32.safetensors'"):
        load_clip(str(other))
    (folder / "open_clip_model.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"'.*ViT-B-32.safetensors' cannot be loaded as"):  # now it is that of this file
        load_clip(str(other))


@pytest.mark.slow
def test_a_published_file_of_open_clip_without_its_configuration_is_refused(tmp_path):
    path = tmp_path / "weights"
    torch.save(openai_shaped("ViT-B/32"), path)
    for file in ("open_clip_pytorch_model.bin", "vit_b_32-laion2b_e16-af8dbd0c.pt", "rn50-quickgelu-yfcc15m-455df137.pt"):
        path = path.rename(tmp_path / file)
        with pytest.raises(WeightsError, match=rf"{file}' has the name of open_clip's weights .*MODEL:TAG:FILE"):
            load_clip(str(path))


# --------------------------------------------------------------------------------------------------------- bare files' sizes


def openai_shaped(name):
    """The tensors of an OpenAI model, with a single number each in memory."""
    a = OPENAI_MODELS[name]
    model = openai_model(a, a.vision_depth or OPENAI_LAYERS[name], VOCABULARY)
    return {key: torch.zeros(shape, dtype=torch.half) for key, shape in shapes_of(model).items()}


@pytest.mark.parametrize("name", OPENAI_MODELS)
def test_every_size_of_openai_is_taken_for_it_and_says_so(name, tmp_path):
    a, file = OPENAI_MODELS[name], tmp_path / "weights.pt"
    file.touch()
    layers = a.vision_depth or OPENAI_LAYERS[name]
    assert a.is_vit or layers == openai_resnet_layers(name)
    shapes = shapes_of(openai_model(a, layers, VOCABULARY))
    notice = check_design("weights.pt", Source("file", path=str(file)), shapes)
    assert f"is taken for weights of OpenAI's {name}, with QuickGELU" in notice
    for key, shape in (("token_embedding.weight", (VOCABULARY + 1, a.text_width)), ("text_projection", (a.text_width, 8))):
        with pytest.raises(WeightsError, match="is of no size that OpenAI has published"):
            check_design("weights.pt", Source("file", path=str(file)), {**shapes, key: shape})


@pytest.mark.parametrize("name", ["ViT-H-14", "ViT-g-14", "ViT-bigG-14", "ViT-B-16-plus-240", "ViT-M-32", "ViT-L-14-280"])
def test_no_other_size_is_taken_for_openais(name, tmp_path):
    """Heads of a width that 64 does not divide, or that it divides by chance, cannot be read off tensors."""
    file = tmp_path / "weights.pt"
    file.touch()
    tags = open_clip.list_pretrained_tags_by_model(name)
    shapes = shapes_of(build(name, recipe_of(name, Source("open_clip", name, tags[0] if tags else ""))))
    with pytest.raises(
        WeightsError, match=rf"is of no size that OpenAI .*'MODEL:TAG:FILE' .*open_clip_config.json .*{DECLARED}"
    ):
        check_design(str(file), Source("file", path=str(file)), shapes)


def test_a_wide_tower_is_refused_bare_and_exact_with_its_configuration(tiny, tmp_path):
    file = saved(tiny, tmp_path / "bare" / "weights.safetensors")
    for function in (load_clip, describe):
        with pytest.raises(WeightsError, match="its number of heads, its activation and its preprocessing are not known"):
            function(str(file))
    assert_is(load_clip(str(hub_folder(tiny, tmp_path / "folder", file="weights.safetensors") / "weights.safetensors")), tiny)
    assert_is(load_clip(f"{MODEL}:{TAG}:{file}"), tiny)


def test_a_size_of_ones_own_in_openais_design_is_declared(tmp_path):
    model = random_clip(5, 48, 64, 2, 64, 16, 77, 49408, 64, 1, 2)
    file = saved(model, tmp_path / "mine.safetensors")
    with pytest.raises(WeightsError, match="of no size that OpenAI has published"):
        load_clip(str(file))
    assert_is(load_clip(f"{DECLARED}{file}"), model)
    with pytest.raises(ModelNameError, match=r"There is no file '/gone.pt', which 'openai:/gone.pt' names"):
        describe(f"{DECLARED}/gone.pt")


def test_the_embedded_files_are_known_by_their_packing():
    assert describe(resolve("emoji_student").path) == describe("emoji_student")


# ---------------------------------------------------------------------------------------------- contradictions with a name


def test_a_file_of_another_resolution_is_refused_under_a_name_and_noticed_in_a_folder(tiny, tmp_path, monkeypatch, capsys):
    larger = {**TINY, "vision_cfg": {**TINY["vision_cfg"], "image_size": 96}}
    file = saved(tiny, tmp_path / "weights.safetensors")
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, MODEL, larger)
    with pytest.raises(WeightsError, match=r"holds weights for images of 64 x 64 pixels, and ViT-B-32-256 takes .* 96 x 96"):
        load_clip(f"{MODEL}:{TAG}:{file}")
    folder = hub_folder(tiny, tmp_path / "hub", larger)
    clip = load_clip(str(folder))
    line = f"'{folder}' takes images of 96 x 96 pixels, its weights are for images of 64 x 64 pixels: their positions are "
    assert capsys.readouterr().out.startswith(line + "interpolated")
    reference = open_clip.create_model(MODEL, pretrained=str(file)).eval()
    assert_is(clip, reference)


def test_texts_of_another_length_are_refused_under_a_name(tiny, tmp_path, monkeypatch):
    file = saved(tiny, tmp_path / "weights.safetensors")
    shorter = {**TINY, "text_cfg": {**TINY["text_cfg"], "context_length": 32}}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, MODEL, shorter)
    with pytest.raises(WeightsError, match="holds weights for texts of 77 tokens, and ViT-B-32-256 takes texts of 32 tokens"):
        load_clip(f"{MODEL}:{TAG}:{file}")


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [("vision_cfg", "head_width", 40), ("text_cfg", "heads", 4), ("vision_cfg", "image_size", 96)],
)
def test_a_configuration_of_another_architecture_beside_a_named_file_is_refused(tiny, tmp_path, part, key, value):
    folder = hub_folder(tiny, tmp_path, {**TINY, part: {**TINY[part], key: value}})
    with pytest.raises(ModelNameError, match=rf"is of another model: {part}.{key} is {value} there, {TINY[part][key]} in"):
        load_clip(f"{MODEL}:{folder}")


# -------------------------------------------------------------------------------------------------------------- preprocessing


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("mean", [0.5]), ("mean", [0.5, 0.5, float("nan")]), ("mean", "0.5"), ("mean", [True, 0, 0]), ("mean", [124, 116, 104]),
        ("std", [0, 0, 0]), ("std", [1e-300] * 3), ("std", [float("inf")] * 3), ("std", [58.4, 57.1, 57.4]), ("std", 0.5),
        ("interpolation", "random"), ("interpolation", 3), ("resize_mode", "longest"), ("mode", "L"),
        ("size", 32), ("size", [64, 32]), ("size", "64"), ("size", [64, 64, 64]), ("size", float("inf")), ("gamma", 2),
    ],
)  # fmt: skip
def test_a_preprocessing_that_no_image_can_be_prepared_with_is_refused(tiny, tmp_path, key, value):
    folder = hub_folder(tiny, tmp_path, preprocess={**PREPROCESS, key: value})
    with pytest.raises(ModelNameError, match=f"{key}|pixels by its"):
        load_clip(str(folder))


def test_a_preprocessing_of_the_models_size_is_used(tiny, tmp_path):
    for size in (64, [64, 64]):
        folder = hub_folder(tiny, tmp_path, preprocess={**PREPROCESS, "size": size, "mode": "RGB"})
        assert describe(str(folder)).preprocessing.size == (64, 64)
