"""Damaged and random files: a loader ends well, or in an error that the commands report in one line."""

import json
import random

import pytest
import torch
from support import image_file, save_clip, untrained_bundle
from support.files import RUN, result

from kdpl.bundle import read_bundle
from kdpl.clip.loading import load_clip
from kdpl.common.files import key_of
from kdpl.common.images import BadImageError, open_image
from kdpl.common.safe_text import read_class_names
from kdpl.common.tensor_files import FeatureFile
from kdpl.config.defaults import merge_file, merged_cfg
from kdpl.config.manifest import read_manifest
from kdpl.training.checkpoint import load_checkpoint
from kdpl.training.results import read_results, write_results

YAML = "OPTIM:\n  LR: 0.1\n  STEPSIZE: [1, 2]\n"
REPORTED = (ValueError, OSError, ImportError)  # what commands turn into one line


def features(path):
    file = FeatureFile(path.parent, {}, 4)
    file.add([key_of("cat")], torch.ones(1, 4))
    file.save()
    file.path.rename(path)


def read_features(path):
    path.rename(FeatureFile(path.parent, {}, 4).path)
    file = FeatureFile(path.parent, {}, 4)
    assert key_of("cat") not in file or torch.isfinite(file.get([key_of("cat")])).all()


LOADERS = {
    "names.txt": (lambda path: path.write_text("cat\ndog\n"), read_class_names),
    "c.yaml": (lambda path: path.write_text(YAML), lambda p: merge_file(merged_cfg((), {}, []), p)),
    "manifest.json": (lambda path: path.write_text(json.dumps({"format": 1, "config": {}})), lambda p: read_manifest(p.parent)),
    "results.json": (lambda path: write_results(path.parent, RUN, result()), lambda p: read_results(p.parent)),
    "photo.jpg": (lambda path: image_file(path, 24), open_image),
    "model.pth.tar-1": (lambda p: torch.save({"state_dict": {"ctx": torch.ones(2, 3)}, "epoch": 1}, p), load_checkpoint),
    "clip.safetensors": (
        lambda path: save_clip(path, 5, 32, 32, 1, 64, 16, 77, 49408, 64, 1, 1),
        lambda path: load_clip(f"openai:{path}"),
    ),
    "prompts.safetensors": (
        lambda path: untrained_bundle(path.parent, "CoOp", ["cat", "dog"]),
        lambda p: read_bundle(p.parent),
    ),
    "features": (features, read_features),
}


def damaged(content, numbers):
    """Return content that is cut, has other bytes, or begins with random ones."""
    content, kind = bytearray(content), numbers.randrange(3)
    if kind == 0:
        return content[: numbers.randrange(len(content))]
    if kind == 1:
        for _ in range(numbers.randrange(1, 9)):
            content[numbers.randrange(min(len(content), 4096))] = numbers.randrange(256)
        return content
    return numbers.randbytes(numbers.randrange(64)) + content


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", LOADERS)
def test_no_content_ends_in_an_error_that_is_not_reported(name, tmp_path):
    make, load = LOADERS[name]
    make(tmp_path / name)
    sound, numbers = (tmp_path / name).read_bytes(), random.Random(name)
    load(tmp_path / name)  # as it was
    for _ in range(8 if name.startswith("clip") else 30):
        (tmp_path / name).write_bytes(damaged(sound, numbers))
        try:
            load(tmp_path / name)
        except REPORTED as error:
            assert str(error) and (isinstance(error, BadImageError) or not name.startswith("photo"))
