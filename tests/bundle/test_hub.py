"""Bundles on the Hugging Face Hub: pushed to and loaded from a small Hub on this machine."""

import os
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import yaml
from huggingface_hub import constants, file_download
from support import image_file, untrained_bundle
from support.hub import READER, WRITER, Repository, local_hub

import kdpl
from kdpl.__main__ import main
from kdpl.bundle import FILE_NAME, BundleError, hub, read_bundle, write_bundle

AGENTS = "/api/agent-harnesses"  # huggingface_hub 2.4 asks for it once a process, whatever is downloaded
NAMES = ["cat", "dog"]
MEASURED = {"dataset": "pets: [all]", "split": "test", "classes": "base", "num_classes": 2, "num_images": 10}
MEASURED |= {"accuracy": 71.254, "macro_f1": 70.0, "error_rate": 28.746, "source_domains": [], "target_domains": []}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return untrained_bundle(tmp_path_factory.mktemp("bundle"), "CoOp", NAMES)


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A Hub with an empty cache and the token of a writer; without xet, whose storage is another service."""
    with local_hub() as server:
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "KDPL_DEBUG"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("HF_TOKEN", WRITER)
        use_endpoint(monkeypatch, server.address)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True, raising=False)
        yield server


def use_endpoint(monkeypatch, address):
    """Do what HF_ENDPOINT does before the client is imported; older clients have copies of the constants."""
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    for module in (constants, file_download):
        monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)


def put(server, bundle, name="me/prompts", *refs, **files):
    """Lay a repository with a bundle and other files on the Hub, and return its commit."""
    repository = server.repositories.setdefault(name, Repository())
    return repository.commit({FILE_NAME: (bundle / FILE_NAME).read_bytes(), **files}, *refs)


def refused(call, *args):
    with pytest.raises(BundleError) as refusal:
        call(*args)
    message = str(refusal.value)
    assert "\n" not in message and WRITER not in message and READER not in message
    return message


def test_what_is_pushed_is_loaded_with_the_same_numbers(server, bundle, tmp_path, capsys):
    assert main(["push", str(bundle), "me/prompts"]) == 0
    out, err = capsys.readouterr()
    assert f"{server.address}/me/prompts" in out and 'kdpl.load("hf-hub:me/prompts")' in out and WRITER not in out + err
    assert not server.repositories["me/prompts"].private
    clf, local = kdpl.load("hf-hub:me/prompts"), kdpl.load(bundle)
    photo = image_file(tmp_path / "photo.jpg")
    assert clf.classnames == NAMES and torch.equal(clf(photo), local(photo))
    (files,) = server.repositories["me/prompts"].commits.values()
    assert set(files) == {FILE_NAME, "README.md"}


def test_the_card_has_what_the_hub_shows_and_nothing_invented(server, bundle, tmp_path):
    write_bundle(tmp_path / "measured", replace(read_bundle(bundle), results=[MEASURED]))
    assert hub.push(tmp_path / "measured" / FILE_NAME, "me/pets", license="mit") == f"{server.address}/me/pets"
    (files,) = server.repositories["me/pets"].commits.values()
    head, text = files["README.md"].decode().removeprefix("---\n").split("\n---\n", 1)
    about = yaml.safe_load(head)
    assert about["library_name"] == "kdpl" and about["license"] == "mit" and about["pipeline_tag"] == "image-classification"
    assert {"clip", "coop"} <= set(about["tags"])
    assert 'kdpl.load("hf-hub:me/pets")' in text and "| 71.25 | 70.00 |" in text


def test_prompts_of_a_learner_of_ones_own_are_pushed_with_its_file_which_stays_here(server, bundle, tmp_path, capsys):
    own = replace(read_bundle(bundle), variant="Shared", trainer="KDPL_Shared")
    folder = write_bundle(tmp_path / "own", own).parent
    assert main(["push", str(folder), "me/own"]) == 2
    message = capsys.readouterr().err
    assert "variant 'Shared' is not one of" in message and "--learner" in message and not server.repositories
    file = tmp_path / "shared.py"
    head = "from kdpl.students import CoOp\nfrom kdpl.trainers import prompt_learner\n"
    file.write_text(f"{head}@prompt_learner\nclass Shared(CoOp):\n    node, defaults = 'SHARED', CoOp.defaults\n")
    assert main(["push", str(folder), "me/own", "--learner", str(file)]) == 0
    (files,) = server.repositories["me/own"].commits.values()
    assert set(files) == {FILE_NAME, "README.md"}
    assert "Shared is not a learner of kdpl: import its file first" in files["README.md"].decode()
    assert type(kdpl.load("hf-hub:me/own").student).__name__ == "Shared"


def test_a_revision_is_what_it_was(server, bundle, tmp_path):
    old = put(server, bundle, "me/prompts", "v1")
    put(server, untrained_bundle(tmp_path / "other", "CoOp", ["one", "two", "three"]))
    assert kdpl.load("hf-hub:me/prompts").classnames == ["one", "two", "three"]
    for revision in ("v1", old):
        assert kdpl.load(f"hf-hub:me/prompts@{revision}").classnames == NAMES
    assert "'hf-hub:me/prompts@v2' at http" in (message := refused(kdpl.load, "hf-hub:me/prompts@v2"))
    assert "it has no such revision" in message


def test_only_the_bundle_is_ever_downloaded(server, bundle, tmp_path):
    put(server, bundle, "me/prompts", **{"pytorch_model.bin": b"cos\nsystem\n", "modeling.py": b"1/0", "config.json": b"{}"})
    kdpl.load("hf-hub:me/prompts")
    assert {path.rpartition("/")[2] for _, path in server.asked if path != AGENTS} == {FILE_NAME}
    assert not [p for p in (tmp_path / "hub").rglob("*") if p.is_file() and b"system" in p.read_bytes()]
    server.repositories["me/code"] = Repository()
    server.repositories["me/code"].commit({"pytorch_model.bin": b"cos\nsystem\n"})
    assert f"it has no {FILE_NAME}, so it holds no prompts" in refused(kdpl.load, "hf-hub:me/code")
    server.repositories["me/code"].commit({FILE_NAME: b"cos\nsystem\n"})
    assert "truncated or not of safetensors" in refused(kdpl.load, "hf-hub:me/code")


def test_a_damaged_download_is_refused_and_which_file_to_delete_is_said(server, bundle, tmp_path):
    put(server, bundle)
    server.damaged = True
    message = refused(kdpl.load, "hf-hub:me/prompts")
    assert "are not those that were written" in message
    server.damaged = False
    (file,) = [path for path in (tmp_path / "hub").rglob(FILE_NAME) if f"Delete '{path}'" in message]
    os.remove(os.path.realpath(file))
    assert kdpl.load("hf-hub:me/prompts").classnames == NAMES


def test_a_bundle_of_gigabytes_is_not_downloaded(server, bundle, monkeypatch):
    put(server, bundle)
    monkeypatch.setattr(hub, "LARGEST", 1000)
    assert "bytes, prompts at most 1,000" in refused(kdpl.load, "hf-hub:me/prompts")
    assert {method for method, path in server.asked if path != AGENTS} == {"HEAD"}


def test_what_is_not_there_or_not_given_is_one_line_with_what_to_do(server, bundle, monkeypatch):
    assert "check the name" in refused(kdpl.load, "hf-hub:me/gone")
    put(server, bundle, "me/hidden")
    server.repositories["me/hidden"].private = True
    assert kdpl.load("hf-hub:me/hidden").classnames == NAMES
    monkeypatch.delenv("HF_TOKEN")
    assert "or private" in refused(kdpl.load, "hf-hub:me/hidden")
    put(server, bundle, "me/asked")
    server.repositories["me/asked"].gated = True
    assert "ask on its page" in refused(kdpl.load, "hf-hub:me/asked")
    asked = len(server.asked)
    for name in ("prompts", "a/b/c", "../b", "a/..", "", "a b/c", "me/p-", "me/p--q"):
        refused(kdpl.load, f"hf-hub:{name}")
        assert len(server.asked) == asked, name


def test_without_network_the_cached_bundle_is_used_and_a_line_says_so(server, bundle, monkeypatch, capsys):
    put(server, bundle)
    kdpl.load("hf-hub:me/prompts")
    server.status = 503
    capsys.readouterr()
    assert kdpl.load("hf-hub:me/prompts").classnames == NAMES
    assert "cannot be reached" in (err := capsys.readouterr().err) and "looking in the cache" in err
    assert "check the network" in refused(kdpl.load, "hf-hub:me/prompts@other")
    with monkeypatch.context() as elsewhere:
        use_endpoint(elsewhere, "http://127.0.0.1:9")
        assert kdpl.load("hf-hub:me/prompts").classnames == NAMES
        assert "check the network" in refused(kdpl.load, "hf-hub:me/new")
    capsys.readouterr()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = len(server.asked)
    assert kdpl.load("hf-hub:me/prompts").classnames == NAMES
    assert "unset HF_HUB_OFFLINE" in refused(kdpl.load, "hf-hub:me/new")
    assert not capsys.readouterr().err and len(server.asked) == asked


def test_nothing_is_uploaded_without_permission_or_by_mistake(server, bundle, monkeypatch, tmp_path):
    (tmp_path / "photos").mkdir()
    assert "There is no" in refused(hub.push, tmp_path / "photos", "me/new") and not server.asked
    assert "expected OWNER/NAME" in refused(hub.push, bundle, "new")
    assert "the token may not write there" in refused(hub.push, bundle, "you/new")
    monkeypatch.setenv("HF_TOKEN", READER)
    assert "the token may not write there" in refused(hub.push, bundle, "me/new")
    monkeypatch.setenv("HF_TOKEN", "hf_\x01secret")
    message = refused(hub.push, bundle, "me/new")
    assert "control characters" in message and "secret" not in message
    monkeypatch.delenv("HF_TOKEN")
    assert "run `hf auth login`" in refused(hub.push, bundle, "me/new")
    assert not server.repositories


def test_a_repository_of_something_else_or_a_public_one_is_left_alone(server, bundle):
    server.repositories["me/llm"] = Repository()
    before = server.repositories["me/llm"].commit({"model.bin": b"weights", "README.md": b"mine"})
    assert "holds something else (README.md, model.bin)" in refused(hub.push, bundle, "me/llm")
    assert list(server.repositories["me/llm"].commits) == [before]
    put(server, bundle, "me/open")
    assert "is there already and public" in refused(hub.push, bundle, "me/open", True)
    assert len(server.repositories["me/open"].commits) == 1
    hub.push(bundle, "me/closed", True)
    assert server.repositories["me/closed"].private and server.repositories["me/closed"].commits


@pytest.mark.slow
def test_a_process_far_away_predicts_from_the_hub_then_offline(server, bundle, tmp_path):
    """The environment variables alone: HF_ENDPOINT, HF_HOME, HF_TOKEN and HF_HUB_OFFLINE."""
    image_file(tmp_path / "photo.jpg")
    env = {**os.environ, "HF_ENDPOINT": server.address, "HF_HOME": str(tmp_path / "home"), "KDPL_DEBUG": "1"}

    def run(*words, **more):
        command = [sys.executable, "-m", "kdpl", *words]
        done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=tmp_path, env=env | more, timeout=300)
        assert done.returncode == 0 and WRITER not in done.stdout + done.stderr, done.stderr
        return done.stdout

    assert f"{server.address}/me/prompts" in run("push", str(bundle), "me/prompts", HF_HUB_DISABLE_XET="1")
    predict = ("predict", "hf-hub:me/prompts", "photo.jpg", "--no-cache")
    online = run(*predict)
    assert re.search(r"photo.jpg\t(cat|dog) \d", online)
    assert run(*predict, HF_HUB_OFFLINE="1", HF_ENDPOINT="http://127.0.0.1:9") == online
