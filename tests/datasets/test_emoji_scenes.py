"""The embedded benchmark: scenes that are the same everywhere, the data sets made of them, and the weights."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support import processes
from torch.nn.functional import normalize

import kdpl

# isort: split
from dassl.config import get_cfg_default
from dassl.data.datasets import build_dataset

from kdpl.clip.loading import load_clip
from kdpl.datasets.emoji import scenes

ROOT = Path(__file__).parents[2]

torch.set_num_threads(1)


def config(root: Path, **keys) -> object:
    cfg = get_cfg_default()
    kdpl.extend_cfg(cfg)
    cfg.DATASET.NAME, cfg.DATASET.ROOT, cfg.SEED = "EmojiSky", str(root), 1
    for key, value in keys.items():
        cfg.DATASET[key] = value
    return cfg


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A root with the smallest data set drawn."""
    root = tmp_path_factory.mktemp("root")
    build_dataset(config(root))
    return root


# ---------------------------------------------------------------- the generator


def test_a_scene_does_not_depend_on_the_others_drawn_with_it():
    chosen = scenes.scenes_of("vehicles")[::101]
    together = scenes.draw(chosen)
    alone = np.concatenate([scenes.draw([scene]) for scene in reversed(chosen)])[::-1]
    assert (together == alone).all()


# ---------------------------------------------------------------- the data sets


@pytest.mark.slow
def test_the_data_set_holds_the_generators_pixels_in_the_documented_layout(root):
    data = build_dataset(config(root))
    assert (len(data.train_x), len(data.val), len(data.test)) == (39 * 16, 39 * 4, 39 * 8)
    assert data.classnames == scenes.class_names("sky")
    assert data.domains == ("noto", "fluent", "twemoji")
    folder = root / "emoji_scenes" / "sky"
    for scene in scenes.scenes_of("sky")[::211]:
        with Image.open(folder / scene.path) as image:
            assert (np.asarray(image) == scenes.draw([scene])[0]).all()
    assert (folder / "test" / "full_moon" / "twemoji_7.png").is_file()
    assert {Path(datum.impath).name.split("_")[0] for datum in data.train_x if datum.domain == 1} == {"fluent"}


# ---------------------------------------------------------------- the cache


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["older generator", "lost file", "unreadable marker"])
def test_a_stale_or_damaged_folder_is_drawn_again(tmp_path, damage, monkeypatch):
    few = scenes.scenes_of("sky")[:28]
    monkeypatch.setattr(scenes, "scenes_of", lambda name: few)
    monkeypatch.setitem(scenes.SHA256, "sky", hashlib.sha256(scenes.draw(few)).hexdigest())
    folder = scenes.scene_folder(tmp_path, "sky")
    marker, image = folder / "scenes.json", folder / few[3].path
    good = marker.read_text()
    if damage == "lost file":
        image.unlink()
    else:
        older = json.dumps(json.loads(good) | {"generator": 0})
        marker.write_text("{" if damage == "unreadable marker" else older)
        image.write_bytes(b"old")
    scenes.scene_folder(tmp_path, "sky")
    assert marker.read_text() == good
    with Image.open(image) as picture:
        assert (np.asarray(picture) == scenes.draw(few[3:4])[0]).all()
    assert os.listdir(folder.parent) == ["sky"]


def test_a_folder_of_somebody_else_is_refused_and_kept(tmp_path):
    theirs = tmp_path / "emoji_scenes" / "sky" / "mine.txt"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("mine")
    with pytest.raises(FileExistsError, match="Move it away"):
        build_dataset(config(tmp_path))
    assert theirs.read_text() == "mine"


@pytest.mark.slow
def test_other_pixels_than_the_committed_ones_are_refused(tmp_path, monkeypatch):
    few = scenes.scenes_of("sky")[:28]
    monkeypatch.setattr(scenes, "scenes_of", lambda name: few)
    monkeypatch.setitem(scenes.SHA256, "sky", "0" * 64)
    with pytest.raises(RuntimeError, match=r"expected 0000.*install KDPL again"):
        build_dataset(config(tmp_path))
    assert not (tmp_path / "emoji_scenes").exists()


DRAW = """
import sys
from kdpl.datasets.emoji import scenes
root, sha, stage = sys.argv[1:]
few = scenes.scenes_of("sky")[: 4 * 44]  # four classes
scenes.scenes_of, scenes.SHA256["sky"] = lambda name: few, sha
def wait():
    print(stage, file=sys.stderr, flush=True)
    sys.stdin.readline()
save, install, images = scenes.Image.Image.save, scenes._install, []
def save_some(image, *args, **options):
    images.append(image)
    if len(images) == 50:
        wait()
    save(image, *args, **options)
def install_later(*args):
    wait()
    install(*args)
if stage == "half written":
    scenes.Image.Image.save = save_some
else:
    scenes._install = install_later
scenes.scene_folder(root, "sky")
"""


@pytest.mark.slow
def test_a_killed_drawing_leaves_nothing_that_counts_and_two_at_once_give_one_folder(tmp_path, monkeypatch):
    few = scenes.scenes_of("sky")[: 4 * 44]  # four classes
    monkeypatch.setattr(scenes, "scenes_of", lambda name: few)
    monkeypatch.setitem(scenes.SHA256, "sky", hashlib.sha256(scenes.draw(few)).hexdigest())

    def draw(stage):
        command = [sys.executable, "-c", DRAW, str(tmp_path), scenes.SHA256["sky"], stage]
        return processes.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    killed = draw("half written")
    assert killed.stderr.readline() == "half written\n"
    killed.kill()
    killed.communicate()
    parent = tmp_path / "emoji_scenes"
    assert len(list(parent.glob("**/*.png"))) == 49 and not (parent / "sky").exists()

    both = [draw("to be installed") for _ in range(2)]
    assert [process.stderr.readline() for process in both] == ["to be installed\n"] * 2
    for process in both:
        process.stdin.write("\n")
        process.stdin.flush()
    for process in both:
        process.communicate()
    assert [process.returncode for process in both] == [0, 0]
    monkeypatch.setattr(scenes, "draw", None)  # a call would fail
    data = build_dataset(config(tmp_path))
    assert len(data.test) == 4 * 8


# ---------------------------------------------------------------- art and weights


@pytest.mark.slow
@torch.no_grad()
def test_the_teacher_reads_scenes_better_than_the_student_which_reads_natural_sentences_alike():
    names, listed = scenes.class_names("meals"), [scene for scene in scenes.scenes_of("meals") if scene.split == "val"]
    images = torch.from_numpy(scenes.draw(listed)).permute(0, 3, 1, 2) / 255
    labels = torch.tensor([scene.label for scene in listed])

    def accuracy(name: str, template: str) -> float:
        clip = load_clip(name)
        mean, std = (torch.tensor(channels)[:, None, None] for channels in (clip.mean, clip.std))
        texts = clip.model.encode_text(clip.tokenizer([template.format(name) for name in names]))
        scores = clip.image_features((images - mean) / std) @ normalize(texts, dim=-1).T
        return (scores.argmax(1) == labels).float().mean().item()

    photo, icon = accuracy("emoji_student", "a photo of a {}."), accuracy("emoji_student", "an icon of a {}.")
    teacher = accuracy("emoji_teacher", "a photo of a {}.")
    assert 10 / 60 < photo < teacher - 0.2 and abs(photo - icon) < 0.05, (photo, icon, teacher)  # chance is 1 / 60
