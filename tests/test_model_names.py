"""`kdpl models` lists what can be named, and a name that is none ends in the right form to write."""

import json

import open_clip
import pytest
from huggingface_hub import constants

from kdpl.__main__ import main
from kdpl.clip import ModelNameError
from kdpl.clip.names import resolve
from kdpl.clip.names.listing import all_models, matching
from kdpl.students import LEARNERS


@pytest.fixture(autouse=True)
def hub(tmp_path, monkeypatch):
    """A cache of the hub that is empty, and no home."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path / "hub"


@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("local-dir:/data/clip", "Write the folder itself: '/data/clip'"),
        ("hf-hub:openai/clip-vit-base-patch32", "OpenAI's weights: write 'ViT-B/32'"),
        ("openai/clip-vit-large-patch14-336", "OpenAI's weights: write 'ViT-L/14@336px'"),
        ("laion/CLIP-ViT-H-14-laion2B-s32B-b79K", "open_clip has these weights: write 'ViT-H-14:laion2b_s32b_b79k'"),
        ("hf-hub:apple/DFN5B-CLIP-ViT-H-14", "open_clip has these weights: write 'ViT-H-14(-quickgelu)?:dfn5b'"),
        ("me/my-clip", "run `hf download me/my-clip`, and write the folder '.*/hub/models--me--my-clip'"),
        ("ViT-L-14:laion2b", "Did you mean 'laion2b_s32b_b82k'.? Write 'ViT-L-14:laion2b_s32b_b82k'"),
        ("ViT-B-32:laion400m", "Which of them: 'ViT-B-32:laion400m_e31', 'ViT-B-32:laion400m_e32'"),
        ("ViT-L-14:laion2b_s32b_b79k", "These are weights of ViT-H-14: write 'ViT-H-14:laion2b_s32b_b79k'"),
        ("./clip.pt", "There is no such file or folder"),
        ("clip.safetensors", "There is no such file or folder"),
    ],
)
def test_a_name_that_is_none_ends_in_the_right_form(name, way):
    with pytest.raises(ModelNameError, match=way):
        resolve(name)


OTHERS = ["ViT-B-64", "ViT-C-16", "ViT-G-14", "EVA02-L-14-33", "ViT-B-16-SigLIP3", "ViT-B-32:laion400m_e33"]


@pytest.mark.parametrize("name", ["facebook/metaclip-b32-400m", "BLIP-large", "ViT-L-14:metaclip2", "siglip", *OTHERS])
def test_no_other_weights_are_meant(name):
    with pytest.raises(ModelNameError) as error:
        resolve(name)
    assert "Did you mean" not in str(error.value), error.value
    assert ("is that of another model: kdpl models lists all" in str(error.value)) == (name in OTHERS[:-1])
    assert ("is that of other weights: kdpl models lists all" in str(error.value)) == (name in OTHERS[-1:])


def test_a_repository_in_the_cache_is_named_by_its_folder(hub):
    (hub / "models--me--my-clip").mkdir(parents=True)
    with pytest.raises(ModelNameError, match=r"is in the cache: write its folder, '.*/hub/models--me--my-clip'"):
        resolve("hf-hub:me/my-clip")


def test_all_models_are_listed_and_words_choose(capsys):
    models = all_models()
    assert {model.name for model in models} >= {"ViT-B/32", "emoji_student", *open_clip.list_models()}
    found = matching(models, ["h-14", "DFN5B"])
    assert {"ViT-H-14-quickgelu", "ViT-H-14-378-quickgelu"} <= {m.name for m in found} and all("H-14" in m.name for m in found)
    assert all("dfn5b" in tag for model in matching(models, ["dfn5b"]) for tag in model.tags)
    assert main(["models"]) == 0
    out = capsys.readouterr().out
    assert "ViT-H-14-quickgelu" in out and f"{len(models)} models" in out
    assert main(["models", "no-such-model"]) == 2


def test_a_few_models_have_their_facts_and_the_cache_its_folders(hub, tmp_path, capsys):
    weights = tmp_path / ".cache/clip/RN50.pt"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(bytes(3_000_000))
    folder = hub / "models--me--mine" / "snapshots" / "abc"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "clip"}))
    assert main(["models", "rn50:openai"]) == 0
    out = capsys.readouterr().out
    line = next(line.split("  ") for line in out.splitlines() if line.startswith("RN50:openai"))
    (learners,) = (cell.strip().removeprefix("those of text: ").split(", ") for cell in line if "those of text: " in cell)
    assert {"102", "224"} <= {cell.strip() for cell in line}
    assert {"CoOp", "TCP"} <= set(learners) < {learner.__name__ for learner in LEARNERS} and "VPT" not in learners
    assert "in the Hugging Face cache, transformers: " in out and "models--me--mine" in out
    assert main(["models", "emoji_student"]) == 0
    assert "here" in capsys.readouterr().out
