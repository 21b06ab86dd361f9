"""CLIPs load from names, files and folders, unpatched and in the precision asked, exact or refused in one sentence."""

import itertools
import json
import re
import subprocess
import sys

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from support import random_clip
from support.elsewhere import run_elsewhere
from support.files import Evil
from support.hub import Repository, local_hub

from kdpl.__main__ import main
from kdpl.clip import ModelNameError, WeightsError, describe, load_clip, outline_clip
from kdpl.clip.listing import named
from kdpl.clip.names import OPENAI_MODELS, Source, resolve
from kdpl.clip.openclip import recipe_of

SMALL = (48, 64, 2, 64, 16, 77, 49408, 64, 1, 2)  # embed_dim, resolution, vision layers, width, patch, context, ...
TINY = {
    "embed_dim": 40,
    "vision_cfg": {"image_size": 64, "layers": 2, "width": 160, "head_width": 80, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}
PREPROCESS = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bilinear", "resize_mode": "squash"}
MODEL, TAG = "ViT-B-32", "laion2b_s34b_b79k"  # of whose tags some have GELU and some QuickGELU
REPOSITORY = open_clip.get_pretrained_cfg(MODEL, TAG)["hf_hub"].strip("/")


@pytest.fixture(scope="module")
def small():
    return random_clip(5, *SMALL)


@pytest.fixture
def tiny(monkeypatch):
    """ViT-B-32 with its published tags, but small, with heads of 80."""
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, MODEL, TINY)
    torch.manual_seed(3)
    return open_clip.create_model(MODEL).eval()


def saved(model, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    return path


def hub_folder(model, folder, config=TINY, preprocess=PREPROCESS):
    saved(model, folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
    return folder


def assert_is(clip, model):
    images = torch.randn(2, 3, clip.resolution, clip.resolution, generator=torch.Generator().manual_seed(0))
    ids = clip.tokenizer(["a photo of a cat.", "dog"])
    torch.testing.assert_close(clip.image_features(images), model.encode_image(images), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(clip.encode_text(ids), model.encode_text(ids), atol=1e-5, rtol=1e-4)
    assert not clip.model.training and not any(p.requires_grad for p in clip.model.parameters())


@pytest.mark.parametrize("suffix", ["wrapped.pt", "state.safetensors", "archive.pt", "resnet.pt"])
def test_a_file_of_openais_architecture_loads_without_loss_of_precision(small, suffix, tmp_path):
    path, model = tmp_path / suffix, small
    if suffix == "archive.pt":
        example = (torch.randn(1, 3, 64, 64), torch.zeros(1, 77, dtype=torch.long))
        torch.jit.trace(small, example, check_trace=False).save(path)
    elif suffix == "wrapped.pt":
        torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in small.state_dict().items()}}, path)
    else:
        model = random_clip(6, 48, 64, (1, 1, 1, 1), 8, None, 77, 49408, 64, 1, 2) if suffix == "resnet.pt" else small
        saved(model, path)
    assert_is(load_clip(f"openai:{path}"), model)
    assert describe(f"openai:{path}").vision_depth == (0 if suffix == "resnet.pt" else 2)
    half = load_clip(f"openai:{path}", "fp16")
    assert half.dtype == torch.float16 and half.model.ln_final.weight.dtype == torch.float32


def test_published_and_embedded_architectures_are_known_without_weights():
    for name, known in OPENAI_MODELS.items():
        assert describe(name) == known and outline_clip(name).preprocessing == known.preprocessing
        vision = outline_clip(name).vision if known.is_vit else None
        assert known.vision_depth == (vision.depth if vision else 0) and outline_clip(name).text.depth == known.text_depth
    assert describe("ViT-H-14-quickgelu").vision_depth == 32 and not describe("emoji_teacher").is_vit
    student = describe("emoji_student")
    assert (student.resolution, student.vision_depth, student.text_depth, student.context_length) == (64, 4, 4, 77)
    assert describe(f"openai:{resolve('emoji_student').path}") == student
    assert load_clip("emoji_student").logit_scale.item() == pytest.approx(48, abs=0.1)


FORK = """
class CLIP:
    pass

def build_model(state_dict):
    raise AssertionError("the changed copy was used")
"""


def test_inside_a_fork_openais_code_is_that_of_the_installed_distribution(small, tmp_path):
    """Also where the fork's build_model takes one argument, as the published one does, and is imported first."""
    folder = tmp_path / "fork" / "clip"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("from .clip import *\n")
    (folder / "clip.py").write_text("from .model import build_model\n")
    (folder / "model.py").write_text(FORK)
    saved(small, tmp_path / "s.pt")
    code = f"""
import sys; sys.path.insert(0, "")
import clip
from kdpl.clip import load_clip
loaded = load_clip("openai:{tmp_path}/s.pt")
print(clip.__file__, sys.modules[type(loaded.model).__module__].__file__, loaded.encode_text(loaded.tokenizer(["cat"])).shape)
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder.parent, check=False)
    assert process.returncode == 0, process.stderr
    theirs, ours, *shape = process.stdout.split(maxsplit=2)
    assert theirs.endswith("fork/clip/__init__.py") and ours.endswith("clip/model.py") and "fork" not in ours
    assert shape == ["torch.Size([1, 48])\n"]


def test_every_published_tag_has_its_recipe_and_an_architecture_with_several_is_not_guessed(tmp_path):
    (tmp_path / "weights.bin").write_bytes(b"")
    for name in sorted({*dict(open_clip.list_pretrained())}.intersection(open_clip.list_models())):
        tags = open_clip.list_pretrained_tags_by_model(name)
        for tag in tags:
            recipe, entry = (
                recipe_of(name, resolve(f"{name}:{tag}:{tmp_path}/weights.bin")),
                open_clip.get_pretrained_cfg(name, tag),
            )
            p = recipe.preprocessing
            assert recipe.config["quick_gelu"] or not entry.get("quick_gelu")
            assert (p.mean, p.std) == (tuple(entry["mean"]), tuple(entry["std"]))
            assert (p.interpolation, p.resize_mode) == (entry["interpolation"], entry["resize_mode"])
            assert recipe == recipe_of(name, resolve(f"{name}:{tag}"))
        if len(tags) > 1:
            with pytest.raises(
                ModelNameError,
                match=f"does not say which weights it is, .*'{name}:TAG:FILE' with one of {tags[0]}, ",
            ):
                resolve(f"{name}:{tmp_path}/weights.bin")


@pytest.mark.parametrize(("tag", "quick"), [("openai", True), (TAG, False)])
def test_the_tag_of_a_file_decides_the_activation(tag, quick, tiny, tmp_path):
    file = saved(tiny, tmp_path / "w.safetensors")
    model = open_clip.create_model(MODEL, force_quick_gelu=quick).eval()
    model.load_state_dict(tiny.state_dict())
    assert_is(load_clip(f"{MODEL}:{tag}:{file}"), model)


def test_an_architecture_of_ones_own_loads_from_a_file_and_counts_tokens(tmp_path):
    (tmp_path / "tiny-gelu.json").write_text(json.dumps(TINY))
    open_clip.add_model_config(tmp_path / "tiny-gelu.json")
    model = open_clip.create_model("tiny-gelu").eval()
    clip = load_clip(f"tiny-gelu:{saved(model, tmp_path / 'open_clip_pytorch_model.bin')}")
    assert_is(clip, model)
    long = "red and " * 37 + "a"
    assert int(clip.tokenizer([long]).count_nonzero()) == 77
    with pytest.raises(ValueError, match=r"blue' has 78 tokens, the text tower takes 77: shorten it"):
        clip.tokenizer([long, f"{long} blue"])


def test_a_file_of_another_resolution_is_refused_under_a_name_and_interpolated_in_a_folder(tiny, tmp_path, monkeypatch):
    larger = {**TINY, "vision_cfg": {**TINY["vision_cfg"], "image_size": 96}}
    file = saved(tiny, tmp_path / "weights.safetensors")
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, MODEL, larger)
    with pytest.raises(WeightsError, match=r"size mismatch for visual.positional_embedding"):
        load_clip(f"{MODEL}:{TAG}:{file}")
    folder = hub_folder(tiny, tmp_path / "hub", larger)
    assert_is(load_clip(str(folder)), open_clip.create_model(MODEL, pretrained=str(file)).eval())


@pytest.mark.parametrize(("layer_scale", "autocast"), [(None, False), (0.1, True)])
def test_a_model_whose_half_weights_do_not_work_says_that_fp16_is_autocast(
    layer_scale, autocast, monkeypatch, tmp_path, capsys
):
    config = {**TINY, "vision_cfg": {**TINY["vision_cfg"], "ls_init_value": layer_scale}}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, MODEL, config)
    name = f"{MODEL}:{TAG}:{saved(open_clip.create_model(MODEL), tmp_path / 'w.safetensors')}"
    clip = load_clip(name, "fp16")
    assert ("is autocast over fp32 weights" in capsys.readouterr().out) == autocast
    assert (clip.autocast_dtype, clip.dtype) == ((torch.float16, torch.float32) if autocast else (None, torch.float16))


@pytest.mark.parametrize("way", ["{}", "local-dir:{}"])
def test_a_folder_of_the_hub_is_a_model_with_its_own_recipe(way, tiny, tmp_path):
    name = way.format(hub_folder(tiny, tmp_path / "tiny"))
    clip = load_clip(name)
    assert_is(clip, tiny)
    p = clip.preprocessing
    assert (p.size, p.mean, p.std, p.interpolation, p.resize_mode) == ((64, 64), (0.5,) * 3, (0.5,) * 3, "bilinear", "squash")
    assert describe(name).preprocessing == p
    hub_folder(tiny, tmp_path / "tiny", preprocess={**PREPROCESS, "resize_mode": "shortest"})
    assert describe(name).preprocessing.resize_mode == "shortest", "a changed file is read again"


def test_the_name_of_a_model_is_the_model_and_not_a_folder_of_that_name(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    hub_folder(tiny, tmp_path / "ViT-H-14-quickgelu")
    (tmp_path / "emoji_student").mkdir()
    assert resolve("ViT-H-14-quickgelu") == Source("open_clip", "ViT-H-14-quickgelu", "dfn5b")
    assert resolve("emoji_student").kind == "file"
    assert describe("./ViT-H-14-quickgelu").resolution == 64


def test_a_folder_that_is_not_a_model_says_what_is_missing(tmp_path):
    with pytest.raises(ModelNameError, match=r"has no open_clip_config\.json, and no config.json of transformers"):
        describe(str(tmp_path))
    for config in ('{"model_cfg": 3}', "[]", '{"model_cfg": {"embed_dim": 3, "vision_cfg": {}, "text_cfg": 1}}'):
        (tmp_path / "open_clip_config.json").write_text(config)
        with pytest.raises(ModelNameError, match="has no usable configuration of a CLIP"):
            describe(str(tmp_path))
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY}))
    with pytest.raises(ModelNameError, match="has no weights: expected a file such as open_clip_model"):
        load_clip(str(tmp_path))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("mean", [0.5]), ("mean", [0.5, 0.5, float("nan")]), ("std", [0, 0, 0]), ("interpolation", "random"), ("mode", "L"),
    ],
)  # fmt: skip
def test_a_preprocessing_that_no_image_can_be_prepared_with_is_refused(tiny, tmp_path, key, value):
    with pytest.raises(ModelNameError, match=f"'{key}' of the preprocessing is"):
        load_clip(str(hub_folder(tiny, tmp_path, preprocess={**PREPROCESS, key: value})))


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("ViT-B/33", "Did you mean 'ViT-B/32'"),
        ("ViT-H-14-quikgelu", "Did you mean 'ViT-H-14-quickgelu'"),
        ("ViT-L-14", "does not say which weights it is"),
        ("ViT-L-14:laion2b_s32b_b82", "Did you mean 'laion2b_s32b_b82k'"),
        ("openai:/gone.pt", "There is no file '/gone.pt', which 'openai:/gone.pt' names"),
        (__file__, f"is weights alone, .* 'MODEL:TAG:FILE' .* 'openai:{__file__}'"),
    ],
)
def test_a_name_that_is_not_a_clip_is_refused_with_the_closest(name, hint):
    for function in (load_clip, describe):
        with pytest.raises(ModelNameError, match=hint):
            function(name)


def test_a_file_that_is_not_of_a_clip_is_refused_and_runs_no_code(tiny, tmp_path):
    torch.save({"a": Evil(str(tmp_path / "was here"))}, tmp_path / "evil.pt")
    saved(torch.nn.Linear(2, 2), tmp_path / "other.pt")
    for file in ("cut.pt", "cut.safetensors"):
        (tmp_path / file).write_bytes(b"PK\x03\x04 truncated")
    for file, name in itertools.product(("evil.pt", "other.pt", "cut.pt", "cut.safetensors"), ("openai", f"{MODEL}:{TAG}")):
        with pytest.raises(WeightsError, match=f"{file}' (cannot be read|is not a checkpoint of|cannot be loaded as {MODEL})"):
            load_clip(f"{name}:{tmp_path}/{file}")
    assert not (tmp_path / "was here").exists()


LOAD = """
import json, sys, open_clip
open_clip.factory._MODEL_CONFIGS["ViT-B-32"] = json.loads(sys.argv[2])
from kdpl.clip import ModelNameError, WeightsError, load_clip
try:
    clip = load_clip(sys.argv[1])
except (ModelNameError, WeightsError) as error:
    sys.exit(f"REFUSED {error}")
print("LOADED", float(clip.encode_text(clip.tokenizer(["cat"])).sum()))
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", [f"{MODEL}:{TAG}", "hf-hub:me/tiny"])
def test_weights_are_downloaded_or_the_message_names_a_way_that_works(name, tiny, tmp_path):
    expected = float(tiny.encode_text(open_clip.tokenize(["cat"])).sum().detach())
    file = saved(tiny, tmp_path / "open_clip_pytorch_model.bin")
    config = json.dumps({"model_cfg": TINY, "preprocess_cfg": PREPROCESS}).encode()
    repository = Repository()
    repository.commit({file.name: file.read_bytes(), "open_clip_config.json": config})

    def loaded(name, home, endpoint, **env):
        found = run_elsewhere(LOAD, tmp_path / home, name, json.dumps(TINY), HF_ENDPOINT=endpoint, **env)
        return found.stderr if found.returncode else float(found.stdout.removeprefix("LOADED "))

    refused = loaded(name, "away", "http://127.0.0.1:9")
    if name == f"{MODEL}:{TAG}":
        url, way = re.search(r"from (\S+), put .* write '([^']+)'", refused).groups()
        assert url.endswith(f"/resolve/main/{file.name}")
        assert loaded(way.replace("/path/", f"{tmp_path}/"), "away", "http://127.0.0.1:9") == pytest.approx(expected, rel=1e-4)
    else:
        assert "its configuration cannot be downloaded" in refused
    with local_hub() as hub:
        hub.repositories = dict.fromkeys(("me/tiny", REPOSITORY), repository)
        assert loaded(name, "here", hub.address) == pytest.approx(expected, rel=1e-4)
    assert loaded(name, "here", "http://127.0.0.1:9", HF_HUB_OFFLINE="1") == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_a_missing_tokenizer_of_the_hub_names_the_folder_that_it_belongs_into(tmp_path):
    pytest.importorskip("transformers")
    code = "from kdpl.clip import describe; describe('ViT-B-16-SigLIP2:webli')"
    message = run_elsewhere(code, tmp_path, HF_HUB_OFFLINE="1").stderr
    folder = tmp_path / "hf" / "hub" / "models--timm--ViT-B-16-SigLIP2"
    assert "The tokenizer of 'ViT-B-16-SigLIP2:webli'" in message and f"of its cache to '{folder}'" in message, message


def test_all_models_are_listed_words_choose_and_a_few_have_their_facts(capsys):
    assert set(named()) >= {*OPENAI_MODELS, "emoji_student", *open_clip.list_models()}
    assert all("dfn5b" in tag for tags in named(["dfn5b"]).values() for tag in tags)
    assert main(["models"]) == 0 and "ViT-H-14-quickgelu" in capsys.readouterr().out
    assert main(["models", "no-such-model"]) == 2
    assert main(["models", "rn50:openai"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("RN50:openai"))
    assert " 224 " in line and " 102 " in line and "those of text: " in line and "TCP" in line and "VPT" not in line
    assert main(["models", "emoji_student"]) == 0 and "here" in capsys.readouterr().out
