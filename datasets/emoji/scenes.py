"""The embedded benchmark as Dassl data sets: their images are drawn into a folder at first use.

docs/benchmark.md describes it. Art, licences and the two CLIPs that belong to it lie in `embedded`.
"""

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from dassl.data.datasets import Datum
from PIL import Image
from yacs.config import CfgNode

from kdpl.common.files import cache_dir, replace
from kdpl.config.keys import check_choice
from kdpl.datasets.base import ClassListDataset, blind_draw, draws_blindly, fewshot, subsample_classes
from kdpl.datasets.emoji.art import ART, EMBEDDED
from kdpl.datasets.emoji.generator import GENERATOR_VERSION
from kdpl.datasets.emoji.plans import PLANS, SHA256, Plan, Scene, class_names, draw, scenes_of

__all__ = ["DATASETS", "EMBEDDED", "PLANS", "SHA256", "EmojiScenes", "class_names", "draw", "scenes_of"]

_MARKER = "scenes.json"


def scene_folder(root: str | os.PathLike, name: str) -> Path:
    """Return the folder with a data set's images under `root`, drawing them first unless they are there already.

    A folder appears only when it is complete, whatever interrupts the drawing and however many processes draw at once.
    One that was drawn by another version of the generator, or that lost files, is replaced.

    Raises:
        FileExistsError: a folder of that name is there that was not drawn by this function.
        RuntimeError: the pixels are not the benchmark's.
    """
    folder = Path(root).expanduser().absolute() / EmojiScenes.dataset_dir / name
    if _is_current(folder, name):
        return folder
    if folder.exists() and not (folder / _MARKER).is_file():
        raise FileExistsError(
            f"'{folder}' was not drawn by KDPL: it has no {_MARKER}. Move it away, or set DATASET.ROOT to another folder."
        )
    scenes = scenes_of(name)
    print(f"Drawing {len(scenes):,} emoji scenes into {folder}")
    images = draw(scenes)
    digest = hashlib.sha256(images).hexdigest()
    if digest != SHA256[name]:
        raise RuntimeError(
            f"The scenes of '{name}' have SHA-256 {digest}, expected {SHA256[name]}. "
            f"'{ART}' or the generator was changed; install KDPL again."
        )
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{name}.") as temporary:
            new = Path(temporary, "new")
            _write(new, scenes, images, name)
            _install(new, folder, Path(temporary, "stale"), name)
    except OSError as error:
        raise OSError(
            f"Cannot write the emoji scenes to '{folder}': {error}. "
            "Set DATASET.ROOT (--root) or the environment variable KDPL_CACHE to a folder with room that you may write."
        ) from error
    return folder


def _marker(name: str) -> dict:
    return {"generator": GENERATOR_VERSION, "sha256": SHA256[name]}


def _is_current(folder: Path, name: str) -> bool:
    try:
        marker = json.loads((folder / _MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    beginning = os.path.join(folder, "")
    return marker == _marker(name) and all(os.path.isfile(beginning + scene.path) for scene in scenes_of(name))


def _write(folder: Path, scenes: Sequence[Scene], images: np.ndarray, name: str) -> None:
    for scene, image in zip(scenes, images, strict=True):
        path = folder / scene.path
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path, compress_level=1)  # noise hardly compresses: more effort only costs time
    (folder / _MARKER).write_text(json.dumps(_marker(name)), encoding="utf-8")


def _install(new: Path, folder: Path, stale: Path, name: str) -> None:
    """Rename `new` to `folder`; a stale folder there is moved away first, a current one of another process stays."""
    if folder.exists() and not _is_current(folder, name):
        with contextlib.suppress(FileNotFoundError):  # another process was first to move it
            os.rename(folder, stale)
    try:
        replace(new, folder)  # never replaces a folder that has files in it
    except OSError:
        if not _is_current(folder, name):
            raise


class EmojiScenes(ClassListDataset):
    """A data set of the embedded benchmark, drawn at first use into DATASET.ROOT (empty: the cache folder).

    DATASET.SOURCE_DOMAINS and TARGET_DOMAINS are the styles to train and validate on (empty: all that the plan trains on) and
    to test on (empty: the artist of the plan's first test scenes). A target that is trained on is tested on new scenes, which
    are in no other split. One that others train on and that is not a source is tested on all that they train and validate on
    (leave one domain out). A data set that is for testing only returns its test images as training images too, since Dassl
    takes the class names from these; NUM_SHOTS and SOURCE_DOMAINS have no effect on it.
    """

    dataset_dir = "emoji_scenes"
    plan_name: str  # its key in PLANS
    plan: Plan
    domains: tuple[str, ...]  # styles

    def __init__(self, cfg: CfgNode):
        sources, targets = self._styles(cfg)
        folder = scene_folder(cfg.DATASET.ROOT or cache_dir(), self.plan_name)
        self.dataset_dir = str(folder)

        left_out = {*targets} & {*self.plan.styles_of("train", "val")} - {*sources}
        splits: dict[str, list[Datum]] = {"train": [], "val": [], "test": []}
        for scene in scenes_of(self.plan_name):
            split = scene.split
            if scene.style_name in left_out:  # all that others train and validate on
                split = {"train": "test", "val": "test", "test": ""}[split]
            if split and scene.style_name in (targets if split == "test" else sources):
                domain = self.domains.index(scene.style_name)
                splits[split].append(Datum(os.path.join(folder, scene.path), scene.label, domain, scene.classname))
        train, val, test = splits["train"], splits["val"], splits["test"]
        blind = draws_blindly(cfg) and not self.plan.test_only
        if self.plan.test_only:
            train = test
        elif not blind:
            train, val = fewshot(self, train, val, cfg.DATASET.NUM_SHOTS, cfg.SEED)
        names = dict(enumerate(class_names(self.plan_name)))
        (train, val, test), names = subsample_classes((train, val, test), cfg.DATASET.SUBSAMPLE_CLASSES, names)
        if blind:
            self.drawn_from = train
            train = blind_draw(train, cfg.DATASET.NUM_SHOTS, cfg.SEED)
        super().__init__(names, train_x=train, val=val or None, test=test)

    def _styles(self, cfg: CfgNode) -> tuple[Sequence[str], Sequence[str]]:
        """Return the styles to train and validate on, and those to test on."""
        seen = self.plan.styles_of("train", "val")
        sources, targets = cfg.DATASET.SOURCE_DOMAINS or seen, cfg.DATASET.TARGET_DOMAINS or self.plan.tested
        for style in sources if seen else ():
            check_choice("DATASET.SOURCE_DOMAINS", style, seen)
        for style in targets:
            check_choice("DATASET.TARGET_DOMAINS", style, self.domains)
        return sources, targets


def _data_set(name: str, plan: Plan) -> type[EmojiScenes]:
    members = {"__doc__": plan.about, "__module__": __name__, "plan_name": name, "plan": plan, "domains": plan.styles}
    words = "".join(word.capitalize() for word in name.split("_"))
    return type(f"Emoji{words}", (EmojiScenes,), members)


DATASETS = {c.__name__: c for c in (_data_set(name, plan) for name, plan in PLANS.items())}
globals().update(DATASETS)  # so that a class is found, and pickled, by its name
