"""Names of open_clip's weights: what a tag knows is never lost with a file, and a missing download names a way that works."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import urllib.request
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import open_clip
import pytest
import torch
from clip.model import CLIP
from safetensors.torch import save_file
from support import random_clip
from support.elsewhere import run_elsewhere

from kdpl.clip.files import WeightsError
from kdpl.clip.loading import describe, load_clip
from kdpl.clip.names import ModelNameError, Source
from kdpl.clip.openclip.recipe import recipe_of

TINY = {
    "embed_dim": 40,
    "vision_cfg": {"image_size": 64, "layers": 2, "width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2},
}
MODEL, GELU_TAG = "ViT-B-32", "laion2b_s34b_b79k"
TAGS = [(name, tag) for name in open_clip.list_models() for tag in open_clip.list_pretrained_tags_by_model(name)]


@pytest.fixture
def tiny(monkeypatch):
    """ViT-B-32 with its published tags, but small."""
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, MODEL, TINY)
    torch.manual_seed(3)
    return partial(open_clip.create_model, MODEL)


def weights_of(model, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return path


def assert_is(clip, model):
    model.eval()
    images = torch.randn(2, 3, clip.resolution, clip.resolution, generator=torch.Generator().manual_seed(0))
    ids = clip.tokenizer(["a photo of a cat.", "dog"])
    torch.testing.assert_close(clip.image_features(images), model.encode_image(images), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(clip.encode_text(ids), model.encode_text(ids), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", sorted({name for name, _ in TAGS}))
def test_a_file_of_any_published_weights_has_the_recipe_of_its_tag_or_is_refused(name, tmp_path):
    tags = open_clip.list_pretrained_tags_by_model(name)
    file = tmp_path / "weights.bin"
    file.touch()
    published = [recipe_of(name, Source("open_clip", name, tag)) for tag in tags]
    for tag, recipe in zip(tags, published, strict=True):
        entry = open_clip.get_pretrained_cfg(name, tag)
        assert recipe.config["quick_gelu"] or not entry.get("quick_gelu")
        assert recipe.preprocessing.mean == tuple(entry["mean"]) and recipe.preprocessing.std == tuple(entry["std"])
        assert recipe.preprocessing.interpolation == entry["interpolation"]
        assert recipe.preprocessing.resize_mode == entry["resize_mode"]
        assert recipe_of(name, Source("open_clip", name, tag, str(file))) == recipe
    differ = len({(r.config["quick_gelu"], r.preprocessing) for r in published}) > 1
    try:
        bare = recipe_of(name, Source("open_clip", name, "", str(file)))
    except ModelNameError as error:
        assert differ and all(tag in str(error) for tag in tags) and f"'{name}:TAG:{file}'" in str(error)
    else:
        assert not differ and (bare.config, bare.preprocessing) == (published[0].config, published[0].preprocessing)


def test_the_tag_of_a_file_decides_the_activation(tiny, tmp_path):
    file = weights_of(tiny(), tmp_path / "w.safetensors")
    features = []
    for tag, quick in (("openai", True), (GELU_TAG, False)):
        model = tiny(force_quick_gelu=quick)
        model.load_state_dict(tiny.func(MODEL).state_dict() | torch_state(file))
        clip = load_clip(f"{MODEL}:{tag}:{file}")
        assert_is(clip, model)
        features.append(clip.encode_text(clip.tokenizer(["cat"])))
    assert (features[0] - features[1]).abs().max() > 1e-4
    with pytest.raises(ModelNameError, match=r"does not say which weights of ViT-B-32 the file holds.*QuickGELU"):
        load_clip(f"{MODEL}:{file}")


def torch_state(file: Path) -> dict:
    from safetensors.torch import load_file

    return load_file(file)


def test_a_file_under_its_published_name_is_known(tiny, tmp_path):
    url = open_clip.get_pretrained_cfg(MODEL, "laion400m_e32")["url"]
    model = tiny(force_quick_gelu=True)
    file = weights_of(model, tmp_path / Path(url).name)
    assert open_clip.get_pretrained_cfg(MODEL, "laion400m_e32").get("quick_gelu")
    assert_is(load_clip(f"{MODEL}:{file}"), model)
    with pytest.raises(ModelNameError, match=rf"the file is not of the weights tag '{GELU_TAG}'.*QuickGELU.*GELU"):
        describe(f"{MODEL}:{GELU_TAG}:{file}")


def test_openais_archive_under_an_open_clip_name_keeps_its_activation(tiny, tmp_path):
    model = CLIP(40, 64, 2, 64, 16, 77, 49408, 64, 1, 2).float().eval()
    example = (torch.randn(1, 3, 64, 64), torch.zeros(1, 77, dtype=torch.long))
    torch.jit.trace(model, example, check_trace=False).save(tmp_path / "archive.pt")
    for name in (f"{MODEL}:{tmp_path}/archive.pt", f"{MODEL}:openai:{tmp_path}/archive.pt"):
        assert_is(load_clip(name), model)
    with pytest.raises(ModelNameError, match="the file is not of the weights tag"):
        load_clip(f"{MODEL}:{GELU_TAG}:{tmp_path}/archive.pt")


@pytest.mark.parametrize("cache", [False, True])
def test_a_folder_of_the_hub_is_a_model_with_its_own_recipe(tiny, cache, tmp_path):
    folder = tmp_path / "models--me--tiny"
    files = folder / "snapshots" / "abc" if cache else folder
    preprocess = {"mean": [0, 0, 0], "std": [1, 1, 1], "interpolation": "bilinear", "resize_mode": "squash"}
    model = tiny(force_quick_gelu=True)
    weights_of(model, files / "open_clip_model.safetensors")
    config = {"model_cfg": {**TINY, "quick_gelu": True}, "preprocess_cfg": preprocess}
    (files / "open_clip_config.json").write_text(json.dumps(config))
    if cache:
        (folder / "snapshots" / "old").mkdir()
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text("abc")
    clip = load_clip(str(folder))
    assert_is(clip, model)
    p = clip.preprocessing
    assert (p.size, p.mean, p.std, p.interpolation, p.resize_mode) == ((64, 64), (0, 0, 0), (1, 1, 1), "bilinear", "squash")
    assert describe(str(folder)).preprocessing == p
    assert_is(load_clip(f"{MODEL}:{folder}"), model)  # the configuration beside the weights tells
    with pytest.raises(ModelNameError, match="the file is not of the weights tag"):
        load_clip(f"{MODEL}:{GELU_TAG}:{folder}")
    if cache:
        (folder / "refs" / "main").unlink()
        with pytest.raises(ModelNameError, match="has 2 snapshots"):
            describe(str(folder))


def test_a_folder_that_is_no_model_says_what_is_missing(tmp_path):
    with pytest.raises(ModelNameError, match=r"has no open_clip_config\.json"):
        describe(str(tmp_path))
    (tmp_path / "open_clip_config.json").write_text('{"model_cfg": 3}')
    with pytest.raises(ModelNameError, match="is not the configuration of an open_clip model"):
        describe(str(tmp_path))
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY}))
    with pytest.raises(ModelNameError, match="should hold one file of weights"):
        load_clip(str(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("wrapped", ["", "module."])
def test_a_checkpoint_of_tiny_clip_loads_with_gelu(wrapped, tmp_path):
    model = random_clip(5, 512, 224, 10, 256, 16, 77, 49408, 256, 4, 3)  # TinyCLIP-ViT-8M-16-Text-3M
    state = {}
    for key, value in model.state_dict().items():
        tower = "image_encoder" if key.startswith("visual") else "logit_scale" if key == "logit_scale" else "text_encoder"
        state[f"_{tower}.{wrapped}{key}"] = value
    torch.save({"epoch": 1, "state_dict": state}, tmp_path / "tiny.pt")
    for block in (*model.transformer.resblocks, *model.visual.transformer.resblocks):
        block.mlp.gelu = torch.nn.GELU()
    assert_is(load_clip(str(tmp_path / "tiny.pt")), model)
    assert describe(str(tmp_path / "tiny.pt")).text_depth == 3


class Hub(BaseHTTPRequestHandler):
    """The part of the Hugging Face hub that serves files."""

    files: dict[str, bytes] = {}

    def do_HEAD(self):
        body = self.files.get(self.path)
        self.send_response(404 if body is None else 200)
        for key, value in (
            ("X-Repo-Commit", "0" * 40), ("Content-Length", str(len(body or b""))),
            ("ETag", f'"{hashlib.sha256(body or b"").hexdigest()}"'),
            *([("X-Error-Code", "EntryNotFound")] if body is None else []),
        ):  # fmt: skip
            self.send_header(key, value)
        self.end_headers()
        return body

    def do_GET(self):
        body = self.do_HEAD()
        if body is not None:
            self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    Hub.files = {}


LOAD = """
import json, sys, open_clip
open_clip.factory._MODEL_CONFIGS["ViT-B-32"] = json.loads(sys.argv[2])
from kdpl.clip import load_clip
from kdpl.clip.files import WeightsError
try:
    clip = load_clip(sys.argv[1])
except WeightsError as error:
    sys.exit(f"REFUSED {error}")
print("LOADED", float(clip.encode_text(clip.tokenizer(["cat"])).sum()))
"""


def load_elsewhere(name: str, home: Path, endpoint: str, **env: str) -> subprocess.CompletedProcess:
    return run_elsewhere(LOAD, home, name, json.dumps(TINY), HF_ENDPOINT=endpoint, **env)


@pytest.mark.slow
def test_a_missing_download_names_a_way_that_works(tiny, hub, tmp_path):
    model = tiny().eval()
    expected = float(model.encode_text(open_clip.tokenize(["cat"])).sum().detach())
    file = weights_of(model, tmp_path / "open_clip_pytorch_model.bin")
    repository = open_clip.get_pretrained_cfg(MODEL, GELU_TAG)["hf_hub"].strip("/")
    Hub.files = {f"/{repository}/resolve/main/{file.name}": file.read_bytes()}
    endpoint = f"http://127.0.0.1:{hub.server_port}"

    # without the hub: the message's address and name are the way
    refused = load_elsewhere(f"{MODEL}:{GELU_TAG}", tmp_path / "away", "http://127.0.0.1:9")
    assert refused.returncode and "REFUSED The weights of" in refused.stderr, refused.stderr
    url, name = re.search(r"from (\S+), put .* write '([^']+)'", refused.stderr).groups()
    fetched = tmp_path / "elsewhere" / url.rpartition("/")[2]
    fetched.parent.mkdir()
    with urllib.request.urlopen(url.replace("http://127.0.0.1:9", endpoint)) as answer:
        fetched.write_bytes(answer.read())
    loaded = load_elsewhere(name.replace("/path/", f"{fetched.parent}/"), tmp_path / "away", "http://127.0.0.1:9")
    assert float(loaded.stdout.removeprefix("LOADED ")) == pytest.approx(expected, rel=1e-4), loaded.stderr

    # with the hub it is downloaded, and its cache is a folder that another machine can take over
    loaded = load_elsewhere(f"{MODEL}:{GELU_TAG}", tmp_path / "here", endpoint)
    assert float(loaded.stdout.removeprefix("LOADED ")) == pytest.approx(expected, rel=1e-4), loaded.stderr
    shutil.copytree(tmp_path / "here" / "hf", tmp_path / "there" / "hf")
    loaded = load_elsewhere(f"{MODEL}:{GELU_TAG}", tmp_path / "there", "http://127.0.0.1:9", HF_HUB_OFFLINE="1")
    assert float(loaded.stdout.removeprefix("LOADED ")) == pytest.approx(expected, rel=1e-4), loaded.stderr


@pytest.mark.parametrize(("layer_scale", "autocast"), [(None, False), (0.1, True)])
def test_a_model_whose_half_weights_do_not_work_says_in_one_line_that_fp16_is_autocast(
    layer_scale, autocast, monkeypatch, tmp_path, capsys
):
    config = {**TINY, "vision_cfg": {**TINY["vision_cfg"], "ls_init_value": layer_scale}}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, MODEL, config)
    name = f"{MODEL}:{GELU_TAG}:{weights_of(open_clip.create_model(MODEL), tmp_path / 'w.safetensors')}"
    clip = load_clip(name, "fp16")
    line = f"PREC fp16 of '{name}' is autocast over fp32 weights: some of its layers do not take half weights\n"
    assert capsys.readouterr().out == line * autocast
    assert (clip.autocast_dtype, clip.dtype) == ((torch.float16, torch.float32) if autocast else (None, torch.float16))


@pytest.mark.slow
def test_a_missing_tokenizer_of_the_hub_names_a_way_that_works(hub, tmp_path):
    """The folder that `hf download` makes on a machine with the hub is copied to where the message says."""
    pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, processors

    tokenizer = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1, "a": 2, "[UNK]": 3}, unk_token="[UNK]"))
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    kind = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "[UNK]"}
    files = {"tokenizer.json": tokenizer.to_str(), "tokenizer_config.json": json.dumps(kind)}
    code = """
import sys
from kdpl.clip import WeightsError, describe
try:
    print("DESCRIBED", describe("ViT-B-16-SigLIP2:webli").context_length)
except WeightsError as error:
    sys.exit(f"REFUSED {error}")
"""

    def describe_at(home: Path) -> subprocess.CompletedProcess:
        environment = {**os.environ, "HOME": str(home), "HF_HOME": str(home / "hf"), "HF_HUB_OFFLINE": "1"}
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)

    refused = describe_at(tmp_path).stderr
    assert "REFUSED The tokenizer of 'ViT-B-16-SigLIP2:webli'" in refused, refused
    repository, folder, target = re.search(r"hf download (\S+) .* copy the folder \'(\S+)\' .* to \'(\S+)\'", refused).groups()
    assert Path(target) == tmp_path / "hf" / "hub" / folder
    Hub.files = {f"/{repository}/resolve/main/{file}": content.encode() for file, content in files.items()}
    download = (
        "import sys; from huggingface_hub import hf_hub_download; [hf_hub_download(sys.argv[1], f) for f in sys.argv[2:]]"
    )
    home = tmp_path / "networked"
    environment = {**os.environ, "HF_HOME": str(home), "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}"}
    subprocess.run([sys.executable, "-c", download, repository, *files], env=environment, check=True)
    shutil.copytree(home / "hub" / folder, target, symlinks=True)
    described = describe_at(tmp_path)
    assert "DESCRIBED 64" in described.stdout, described.stderr


def test_a_tokenizer_that_needs_transformers_is_refused_before_weights_are_looked_for(monkeypatch):
    monkeypatch.setattr("kdpl.clip.openclip.tokenizer.importlib.util.find_spec", lambda name: None)
    for name, repository in (
        ("ViT-B-16-SigLIP2", "timm/ViT-B-16-SigLIP2"),
        ("roberta-ViT-B-32", "roberta-base"),
        ("ViT-H-14-worldwide", "facebook/xlm-v-base"),
    ):
        if name not in open_clip.list_models():  # ViT-H-14-worldwide is newer than the lowest version
            continue
        for function in (describe, load_clip):
            with pytest.raises(
                WeightsError, match=rf"'{repository}' on the Hugging Face hub, needs .* pip install 'kdpl\[hf\]'"
            ):
                function(name)
