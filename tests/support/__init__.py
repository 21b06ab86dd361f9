"""Small real parts that tests build on: random CLIPs in files, configurations, an in-memory data set, the command line."""

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from clip.model import CLIP
from safetensors.torch import save_file

import kdpl
from kdpl import students
from kdpl.common import outputs
from kdpl.students.base import ALWAYS
from support import processes

ROOT = Path(__file__).resolve().parents[2]
# KDPL_CoOp's learning rate on the embedded benchmark, which a search has chosen.
RATE = yaml.safe_load((ROOT / "configs/trainers/KDPL_CoOp/emoji.yaml").read_text(encoding="utf-8"))["OPTIM"]["LR"]
EMOJI = ("emoji_meals", "emoji_leisure", "emoji_mammals", "emoji_vehicles", "emoji_household")
ParameterSet = type(pytest.param())
# The number of learned parameters on the embedded benchmark, whose widths are all 128.
PARAMETERS = {
    "CoOp": 4 * 128,
    "CoCoOp": 4 * 128 + 129 * 8 + 9 * 128,
    "VPT": 4 * 8 * 128,
    "MaPLe": 3 * (2 * 128 + 129 * 128),
    "PromptSRC": 3 * 4 * 128 + 3 * 4 * 128,
    "IVLP": 3 * 4 * 128 + 3 * 4 * 128,
    "KgCoOp": 4 * 128,
    "TaskRes": 30 * 128,  # a vector for each of the base classes of emoji_meals
    "TCP": 4 * 128 + 129 * 32 + 33 * 4 * 128,
    "KernelHead": 30 * 128 + 30 + 2,  # before the solve: photos add centres and coefficients
}
# Every prompt learner, with that number where the table has it.
LEARNERS = {learner.__name__: PARAMETERS.get(learner.__name__) for learner in students.LEARNERS}
STEPPED = tuple(learner.__name__ for learner in students.STEPPED)
# Those that learn something for each class, and so nothing for others.
CLASS_SPECIFIC = tuple(learner.__name__ for learner in students.LEARNERS if learner.learns_class_specific == ALWAYS)
SHARED = tuple(learner for learner in LEARNERS if learner not in CLASS_SPECIFIC)


def one_of_each_kind(learners: Iterable[str]) -> list[str]:
    """Return the first learner of each kind: of what is frozen, of what a class has of its own, of what an image changes."""
    kinds: dict[tuple, str] = {}
    for name in learners:
        c = getattr(students, name)
        kind = (c.image_features_are_frozen, c.reads_frozen_image_features, c.text_depends_on_images, c.learns_class_specific)
        kinds.setdefault(kind, name)
    return list(kinds.values())


def release(folder: str | os.PathLike) -> None:
    """End this process's lock on an output folder, as the end of the process would."""
    outputs._held.pop(str(Path(folder).resolve())).release()


def own_cache(folder: Path) -> str:
    """Return a folder as a value of KDPL_CACHE: a cache with nothing in it but the images that the test run has drawn."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "emoji_scenes").symlink_to(os.environ["KDPL_TEST_SCENES"], target_is_directory=True)
    return str(folder)


def mostly_slow(values: Iterable, *quick: str, sample: Iterable[str] | None = None) -> list:
    """Return the values of a parameter, all but the `quick` ones marked slow: `pytest -m "not slow"` tries those alone.

    Args:
        values: names, or `pytest.param` with an id.
        sample: those that the suite tries beside the quick ones, of many that run the same code; `pytest --whole` tries all.

    Raises:
        ValueError: a quick or sampled one is none of the values.
    """
    params = {p.id if isinstance(p, ParameterSet) else p: p for p in values}
    sampled = params if sample is None else [*quick, *sample]
    if unknown := [name for name in (*quick, *sampled) if name not in params]:
        raise ValueError(f"{unknown} are none of the values {list(params)}.")
    marked = []
    for name, param in params.items():
        marks = [] if name in quick else [pytest.mark.slow] if name in sampled else [pytest.mark.slow, pytest.mark.whole]
        given = param if isinstance(param, ParameterSet) else pytest.param(param)
        marked.append(pytest.param(*given.values, marks=[*given.marks, *marks], id=given.id))
    return marked


def random_clip(seed: int, *sizes) -> CLIP:
    """Return OpenAI's CLIP of these constructor arguments with random fp32 weights."""
    torch.manual_seed(seed)
    return CLIP(*sizes).float().eval()


def save_clip(path: Path, seed: int, *sizes) -> str:
    """Write such a CLIP as a safetensors state dict, and return its name."""
    save_file({k: v.contiguous() for k, v in random_clip(seed, *sizes).state_dict().items()}, path)
    return f"openai:{path}"


def default():
    """Return the default configuration of the engine in use with KDPL's keys."""
    from dassl.config import get_cfg_default

    cfg = get_cfg_default()
    kdpl.extend_cfg(cfg)
    return cfg


def config(trainer: str, dataset: str, output: str | os.PathLike, *options: object, config_file: str = ""):
    """Return the configuration that the command line would build, not frozen."""
    import kdpl.datasets
    import kdpl.trainers.baselines  # noqa: F401
    from kdpl import train

    file = config_file or emoji_settings(trainer)
    args = train.parse_args(["--trainer", trainer, "--config-file", file, "--output-dir", str(output), *map(str, options)])
    cfg = train.build_cfg(args, f"{ROOT}/configs/datasets/{dataset}.yaml" if dataset else "")
    cfg.defrost()
    return cfg


def run_train(*args: object, check: bool = True, cwd: str | os.PathLike | None = None, **env: str):
    """Run `train.py` in its own process and return it, with its output as text."""
    run = subprocess.run if "PYTHONHASHSEED" in env else processes.run  # a seed that one test uses is not worth a server
    process = run(
        [sys.executable, str(ROOT / "train.py"), *map(str, args)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, **env},
        timeout=400,
        check=False,
    )
    assert not check or process.returncode == 0, process.stdout[-2000:] + process.stderr[-4000:]
    return process


def emoji_args(trainer: str, output: str | os.PathLike, dataset: str = "emoji_meals", seed: int = 1) -> list[str]:
    """Return the command line of a run on the embedded benchmark."""
    return [
        "--trainer", trainer, "--seed", str(seed), "--output-dir", str(output),
        "--dataset-config-file", f"{ROOT}/configs/datasets/{dataset}.yaml",
        "--config-file", emoji_settings(trainer),
    ]  # fmt: skip


def emoji_settings(trainer: str) -> str:
    """Return a trainer's configuration file for the embedded benchmark; one without its own has that of its KDPL trainer."""
    names = (trainer, f"KDPL_{trainer}", "KDPL_CoOp")
    files = (ROOT / f"configs/trainers/{name}/emoji.yaml" for name in names)
    return str(next(file for file in files if file.is_file()))


def image_file(path: Path, size: int = 64, seed: int = 0) -> Path:
    """Write a random RGB image."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)).save(path)
    return path


def untrained_bundle(folder: Path, variant: str, names: list[str], **options: object) -> Path:
    """Write the prompts of a new student on the embedded CLIP as a training would; options are of the variant's node."""
    from kdpl.bundle import Bundle, Preprocessing, write_bundle
    from kdpl.clip.loading import load_clip

    clip = load_clip("emoji_student")
    student_class = getattr(students, variant)
    words = {"CTX_INIT": "a photo of a"} if "CTX_INIT" in student_class.defaults else {}
    options = {**words, "PREC": "fp32", **options}
    student = student_class(clip, options, names)
    side = clip.resolution
    write_bundle(
        folder,
        Bundle(
            parameters=student.learned.state_dict(),
            variant=variant,
            trainer=f"KDPL_{variant}",
            backbone=clip.name,
            backbone_sha256=clip.weights_digest,
            options=dict(student.options),
            preprocessing=Preprocessing((side, side), "bicubic", clip.mean, clip.std),
            dataset="",
            template="a photo of a {}.",
            classnames=names,
            teacher="emoji_teacher",
            class_agnostic=False,
            epoch=0,
            results=[],
            config="",
        ),
    )
    return folder


__all__ = [
    "CLASS_SPECIFIC",
    "EMOJI",
    "LEARNERS",
    "ROOT",
    "SHARED",
    "STEPPED",
    "config",
    "default",
    "emoji_args",
    "image_file",
    "kdpl",
    "mostly_slow",
    "random_clip",
    "run_train",
    "save_clip",
    "untrained_bundle",
]
