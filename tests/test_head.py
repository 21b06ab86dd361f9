"""`kdpl export OUT --head FILE`: the lines of docs/your_photos.md give the probabilities of kdpl, without kdpl."""

import dataclasses
import json
import re

import open_clip
import pytest
import torch
import torch.nn.functional as F
from clip.model import CLIP
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support import ROOT, untrained_bundle

import kdpl
from kdpl.bundle import Decision, read_bundle, write_bundle
from kdpl.clip.loading import load_clip
from kdpl.common import exits
from kdpl.datasets.emoji.scenes import draw, scenes_of
from kdpl.photos.share import main
from kdpl.students.kernel_head import Solved

NAMES = ["red apple", "pizza", "croissant", "🍇 grapes"]
SIDE, WIDTH = 32, 64


@pytest.fixture(scope="module")
def clip_file(tmp_path_factory):
    """A small CLIP with random weights, as OpenAI's files have it."""
    torch.manual_seed(0)
    model = CLIP(24, SIDE, 2, WIDTH, 8, 77, 49408, WIDTH, 1, 2).float()
    path = tmp_path_factory.mktemp("clip") / "small.safetensors"
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, path)
    return path


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    path = tmp_path_factory.mktemp("photos") / "photo.png"
    (scene,) = draw(scenes_of("meals")[:1])
    Image.fromarray(scene).resize((97, 64), Image.Resampling.BICUBIC).save(path)
    return path


def prompts(folder, clip_file, variant="TaskRes", **options):
    """A bundle of random prompts for the small CLIP."""
    out = untrained_bundle(folder, "CoOp", NAMES)
    bundle, clip = read_bundle(out), load_clip(f"openai:{clip_file}")
    kind = dataclasses.replace(bundle, variant=variant).student_class
    options = {"PREC": "fp32", **options}
    student, draw = kind(clip, options, NAMES), torch.Generator().manual_seed(1)
    learned = {n: 0.5 * torch.randn(v.shape, generator=draw) for n, v in student.learned.state_dict().items()}
    if kind.closed_form:
        x, a, linear = (torch.randn(shape, generator=draw) for shape in ((10, 24), (10, 4), (4, 24)))
        learned = kind.parameters_of(Solved(F.normalize(x, dim=-1), a, torch.full((4,), 0.25), 5.0, 0.001, linear), 3.0)
    facts = {"variant": variant, "options": dict(student.options), "parameters": learned, "preprocessing": clip.preprocessing}
    facts |= {"backbone": f"openai:{clip_file}", "backbone_sha256": clip.weights_digest, "trainer": f"KDPL_{variant}"}
    write_bundle(out, dataclasses.replace(bundle, **facts))
    return out


def lines_of(library, kernel=False):
    """The code block of docs/your_photos.md that imports a library; of a kernel head with other lines in place of the last."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/your_photos.md").read_text(encoding="utf-8"), re.S)
    (block,) = (block for block in blocks if f"import {library}" in block or f"from {library} " in block)
    code = block.split("\n\n", 1)[1]
    assert len(code.strip().splitlines()) == 5
    if not kernel:
        return block
    (instead,) = (block for block in blocks if "centres" in block)
    assert len(instead.strip().splitlines()) == 2
    return block.strip().rpartition("\n")[0] + "\n" + instead


KINDS = {
    "kernel head": ("KernelHead", {"PREC": "fp16"}, Decision()),
    "CoOp": ("CoOp", {"N_CTX": 2}, Decision()),
    "CoOp, class-specific": ("CoOp", {"N_CTX": 2, "CSC": True}, Decision(temperature=2.0)),
    "sentences": ("VPT", {"PROMPT_DEPTH_VISION": 1}, Decision(sentences=["a {}.", "an icon of a {}."])),
}


def exported(tmp_path, clip_file, kind):
    variant, options, decision = KINDS[kind]
    out = prompts(tmp_path / "out", clip_file, variant, **options)
    write_bundle(out, dataclasses.replace(read_bundle(out), decision=dataclasses.replace(decision, classnames=NAMES)))
    assert main([str(out), "--head", str(tmp_path / "head.safetensors")]) == 0
    return out


@pytest.mark.parametrize("kind", KINDS)
def test_five_lines_with_open_clip_give_the_probabilities(kind, clip_file, photo, tmp_path, monkeypatch):
    out = exported(tmp_path, clip_file, kind)
    text = {"context_length": 77, "vocab_size": 49408, "width": WIDTH, "heads": 1, "layers": 2}
    vision = {"image_size": SIDE, "layers": 2, "width": WIDTH, "patch_size": 8}
    config = {"embed_dim": 24, "quick_gelu": True, "vision_cfg": vision, "text_cfg": text}
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/small-head.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "configs")
    lines = lines_of("open_clip", kind == "kernel head").replace(
        '"ViT-B-32-quickgelu", "openai"', f'"small-head", {str(clip_file)!r}'
    )
    assert_same(lines, out, photo, tmp_path, monkeypatch)


@pytest.mark.parametrize("kind", KINDS)
def test_five_lines_with_transformers_give_the_probabilities(kind, clip_file, photo, tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers", reason="pip install 'kdpl[hf]'")
    out = exported(tmp_path, clip_file, kind)
    tower = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_hidden_layers": 2, "num_attention_heads": 1}
    vision = {**tower, "image_size": SIDE, "patch_size": 8, "hidden_act": "quick_gelu"}
    config = transformers.CLIPConfig(vision_config=vision, text_config=tower, projection_dim=24)
    model = transformers.CLIPModel(config)
    missing = model.load_state_dict(as_transformers_has_them(load_file(clip_file)), strict=False).missing_keys
    assert not [name for name in missing if name.startswith("vis")], missing
    model.save_pretrained(tmp_path / "model")
    size = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
    transformers.CLIPImageProcessor(**size).save_pretrained(tmp_path / "model")
    lines = lines_of("transformers", kind == "kernel head").replace("openai/clip-vit-base-patch32", str(tmp_path / "model"))
    assert_same(lines, out, photo, tmp_path, monkeypatch)


def as_transformers_has_them(state):
    """The image tower of a state dict of OpenAI's, under transformers' names."""
    found = {"visual_projection.weight": state["visual.proj"].T.contiguous()}
    whole = {
        "class_embedding": "embeddings.class_embedding",
        "positional_embedding": "embeddings.position_embedding.weight",
        "conv1.weight": "embeddings.patch_embedding.weight",
        **{
            f"ln_{a}.{p}": f"{b}.{p}"
            for a, b in (("pre", "pre_layrnorm"), ("post", "post_layernorm"))
            for p in ("weight", "bias")
        },
    }
    found |= {f"vision_model.{new}": state[f"visual.{old}"] for old, new in whole.items()}
    parts = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
    parts["attn.out_proj"] = "self_attn.out_proj"
    for layer in range(2):
        old, new = f"visual.transformer.resblocks.{layer}", f"vision_model.encoder.layers.{layer}"
        for p in ("weight", "bias"):
            found |= {f"{new}.{b}.{p}": state[f"{old}.{a}.{p}"] for a, b in parts.items()}
            three = state[f"{old}.attn.in_proj_{p}"].chunk(3)
            found |= {f"{new}.self_attn.{n}_proj.{p}": value for n, value in zip("qkv", three, strict=True)}
    return found


def assert_same(lines, out, photo, tmp_path, monkeypatch):
    lines = lines.replace("head.safetensors", str(tmp_path / "head.safetensors")).replace("photo.png", str(photo))
    assert "kdpl" not in lines
    scope = {}
    with torch.no_grad():
        exec(lines, scope)
    expected = kdpl.load(out, "cpu")([str(photo)])
    assert scope["probabilities"].shape == (1, len(NAMES))
    assert (scope["probabilities"] - expected).abs().max() < 1e-5
    assert (expected - 1 / len(NAMES)).abs().max() > 0.01, "probabilities that say something"


def test_the_file_says_what_it_belongs_to(clip_file, tmp_path, capsys):
    out = exported(tmp_path, clip_file, "CoOp, class-specific")
    assert "4 names x 24, for the image features of openai:" in capsys.readouterr().out
    with safe_open(tmp_path / "head.safetensors", "pt") as file:
        about, features = file.metadata(), file.get_tensor("text_features")
    assert json.loads(about["classnames"]) == NAMES
    preprocessing = json.loads(about["preprocessing"])
    assert preprocessing["size"] == [SIDE, SIDE] and preprocessing.keys() >= {"interpolation", "resize_mode", "mean", "std"}
    assert about["clip"] == f"openai:{clip_file}" and about["clip_sha256"] == read_bundle(out).backbone_sha256
    assert features.dtype == torch.float32 and (features.norm(dim=-1) - 1).abs().max() < 1e-6
    (tmp_path / "names.txt").write_text("pizza\nred apple\n")
    some = ["--classnames", str(tmp_path / "names.txt"), "--head", str(tmp_path / "some.safetensors")]
    assert main([str(out), *some]) == 0
    torch.testing.assert_close(load_file(tmp_path / "some.safetensors")["text_features"], features[[1, 0]])


def test_what_is_no_matrix_is_refused(clip_file, tmp_path, capsys):
    head = tmp_path / "head.safetensors"
    for variant, options, why in (
        ("CoCoOp", {"N_CTX": 2}, "CoCoOp has no matrix of its class names"),
        ("VPT", {"PROMPT_DEPTH_VISION": 1}, "VPT has more than a head"),
        ("IVLP", {"PROMPT_DEPTH_VISION": 1, "PROMPT_DEPTH_TEXT": 1}, "IVLP has more than a head"),
    ):
        out = prompts(tmp_path / variant, clip_file, variant, **options)
        assert main([str(out), "--head", str(head)]) == exits.BAD_INPUT
        assert why in capsys.readouterr().err and not head.exists()
