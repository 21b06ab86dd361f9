"""CLIPs load from names and files, unpatched, frozen and in the precision asked; what cannot be loaded says why."""

import os
import subprocess
import sys
import textwrap

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from support import random_clip
from support.elsewhere import run_elsewhere

from kdpl.clip.files import WeightsError
from kdpl.clip.loading import describe, load_clip
from kdpl.clip.names import ModelNameError

SMALL = (48, 64, 2, 64, 16, 77, 49408, 64, 1, 2)  # embed_dim, resolution, vision layers, width, patch, context, ...


@pytest.fixture(scope="module")
def small():
    return random_clip(5, *SMALL)


def assert_same(clip, model):
    images, text = torch.randn(2, 3, 64, 64), clip.tokenizer(["a photo of a cat.", "dog"])
    torch.testing.assert_close(clip.image_features(images), model.encode_image(images))
    torch.testing.assert_close(clip.model.encode_text(text), model.encode_text(text))
    assert not clip.model.training
    assert not any(p.requires_grad for p in clip.model.parameters())


@pytest.mark.parametrize("suffix", ["state.pt", "wrapped.pt", "state.safetensors", "archive.pt"])
def test_a_file_of_openais_architecture_loads_without_loss_of_precision(small, suffix, tmp_path):
    path, state = tmp_path / suffix, small.state_dict()
    if suffix == "archive.pt":
        example = (torch.randn(1, 3, 64, 64), torch.zeros(1, 77, dtype=torch.long))
        torch.jit.trace(small, example, check_trace=False).save(path)
    elif suffix == "wrapped.pt":
        torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}}, path)
    elif suffix == "state.pt":
        torch.save(state, path)
    else:
        save_file({k: v.contiguous() for k, v in state.items()}, path)
    assert_same(load_clip(f"openai:{path}"), small)
    architecture = describe(f"openai:{path}")
    assert (architecture.resolution, architecture.vision_depth, architecture.text_width) == (64, 2, 64)


def test_a_resnet_file_loads(tmp_path):
    model = random_clip(6, 48, 64, (1, 1, 1, 1), 8, None, 77, 49408, 64, 1, 2)
    torch.save(model.state_dict(), tmp_path / "rn.pt")
    assert_same(load_clip(f"openai:{tmp_path}/rn.pt"), model)
    assert not describe(f"openai:{tmp_path}/rn.pt").is_vit


def test_an_open_clip_architecture_loads_from_a_file(tmp_path, monkeypatch):
    folder = tmp_path / "configs"
    folder.mkdir()
    (folder / "tiny-gelu.json").write_text(
        '{"embed_dim": 40, "vision_cfg": {"image_size": 64, "layers": 2, "width": 64, "patch_size": 16},'
        ' "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 48, "heads": 3, "layers": 2}}'
    )
    open_clip.add_model_config(folder)
    model = open_clip.create_model("tiny-gelu").eval()
    path = tmp_path / "open_clip_pytorch_model.bin"
    torch.save(model.state_dict(), path)
    clip = load_clip(f"tiny-gelu:{path}")
    assert_same(clip, model)
    assert describe(f"tiny-gelu:{path}").text_width == clip.text.width == 48
    long = "red and " * 37 + "a"
    assert int(clip.tokenizer([long]).count_nonzero()) == 77
    with pytest.raises(ValueError, match=r"blue' has 78 tokens, the text tower takes 77: shorten it"):
        clip.tokenizer([long, f"{long} blue"])


def test_fp16_halves_projections_and_keeps_layer_norms(small, tmp_path):
    torch.save(small.state_dict(), tmp_path / "s.pt")
    clip = load_clip(f"openai:{tmp_path}/s.pt", "fp16")
    assert clip.dtype == torch.float16
    assert clip.model.ln_final.weight.dtype == torch.float32


def test_the_embedded_models_are_known_by_name():
    student, teacher = describe("emoji_student"), describe("emoji_teacher")
    assert (student.resolution, student.vision_depth, student.text_depth, student.context_length) == (64, 4, 4, 77)
    assert not teacher.is_vit
    clip = load_clip("emoji_student")
    assert clip.logit_scale.item() == pytest.approx(48, abs=0.1)
    assert len(clip.model.token_embedding.weight) == 49408


def test_published_architectures_are_known_without_weights():
    assert describe("ViT-B/32").vision_depth == 12
    assert describe("ViT-L/14").text_width == 768
    assert describe("ViT-H-14-quickgelu").vision_depth == 32


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("ViT-B/33", "The closest name, 'ViT-B/32', is that of another model: kdpl models lists all."),
        ("emoji_studnet", "Did you mean 'emoji_student'"),
        ("ViT-H-14-quikgelu", "Did you mean 'ViT-H-14-quickgelu'"),
        ("ViT-L-14", "has no single set of weights: write 'ViT-L-14:TAG'"),
        ("ViT-L-14:laion2b_s32b_b82", "Did you mean 'laion2b_s32b_b82k'"),
        ("/nowhere/clip.pt", "is not an OpenAI CLIP model, an open_clip model or a file"),
    ],
)
def test_a_name_that_is_no_clip_is_refused_with_the_closest(name, hint):
    with pytest.raises(ModelNameError, match=hint):
        describe(name)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 truncated"])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_damaged_file_is_named(content, suffix, tmp_path):
    path = tmp_path / f"damaged{suffix}"
    path.write_bytes(content)
    for function in (describe, load_clip):
        with pytest.raises(WeightsError, match=r"damaged\.(pt|safetensors)' "):
            function(str(path))


def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    torch.save({"fc.weight": torch.zeros(2, 2)}, tmp_path / "other.pt")
    with pytest.raises(WeightsError, match="is not a checkpoint of an OpenAI CLIP"):
        load_clip(str(tmp_path / "other.pt"))


def test_a_pickle_that_would_run_code_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "was here"),))

    torch.save({"a": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(WeightsError, match="cannot be read"):
        load_clip(str(tmp_path / "evil.pt"))
    assert not (tmp_path / "was here").exists()


def offline(code: str, tmp_path, **env) -> str:
    process = run_elsewhere(textwrap.dedent(code), tmp_path, https_proxy="http://127.0.0.1:9", **env)
    assert process.returncode == 0, process.stderr
    return process.stdout


@pytest.mark.slow
def test_without_network_the_file_its_address_and_its_folder_are_named(tmp_path):
    printed = offline(
        """
        from kdpl.clip import load_clip, WeightsError
        for name in ("RN50", "ViT-H-14-quickgelu"):
            try:
                load_clip(name)
            except WeightsError as error:
                print(error)
        """,
        tmp_path,
    )
    assert "Get the file 'RN50.pt' from https://" in printed
    assert f"put it into {tmp_path}/.cache/clip" in printed
    assert "Get the file 'open_clip_pytorch_model.bin' from https://" in printed
    assert "'ViT-H-14-quickgelu:dfn5b:/path/open_clip_pytorch_model.bin'" in printed


@pytest.mark.slow
def test_inside_a_fork_with_a_patched_clip_the_unpatched_one_is_used(small, tmp_path):
    """A fork's `clip` wants a second argument to `build_model` and its blocks take lists."""
    fork = tmp_path / "fork"
    (fork / "clip").mkdir(parents=True)
    (fork / "clip" / "__init__.py").write_text("from .clip import *\n")
    (fork / "clip" / "clip.py").write_text("from .model import build_model\n")
    (fork / "clip" / "model.py").write_text(
        "def build_model(state_dict, design_details):\n    raise AssertionError('the patched copy was used')\n"
    )
    torch.save(small.state_dict(), tmp_path / "s.pt")
    process = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; sys.path.insert(0, '')\n"
            "import clip\n"
            "from kdpl.clip import load_clip\n"
            f"loaded = load_clip('openai:{tmp_path}/s.pt')\n"
            "print(clip.__file__, loaded.text.width, loaded.tokenizer(['cat']).shape)",
        ],
        capture_output=True,
        text=True,
        cwd=fork,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    assert "fork/clip/__init__.py 64 torch.Size([1, 77])" in process.stdout
