"""The data sets of the embedded benchmark as lists of scenes: which thing, in which style, how often, for what."""

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kdpl.datasets.emoji.art import STYLES, drawing_number, drawings, things
from kdpl.datasets.emoji.generator import OTHER_SCENES, SCENES, SIZE, SKETCHES, Look, draw_scenes


class Part(NamedTuple):
    """Scenes of every class in every one of some styles."""

    split: str  # train, val or test
    styles: tuple[str, ...]
    renderings: range  # their numbers
    look: Look = SCENES
    chosen: Callable[[], dict[str, Collection[int]]] | None = None  # of each thing the numbers that are left; None: all


class Plan(NamedTuple):
    """A data set."""

    about: str  # what its classes are
    parts: tuple[Part, ...]  # its scenes, those of a split one after another

    @property
    def styles(self) -> tuple[str, ...]:
        return self.styles_of("train", "val", "test")

    def styles_of(self, *splits: str) -> tuple[str, ...]:
        """Return the styles that these splits have, in the order of their first part."""
        return tuple(dict.fromkeys(style for part in self.parts if part.split in splits for style in part.styles))

    @property
    def tested(self) -> tuple[str, ...]:
        """The styles that are tested on if nothing else is said: those of the first part for testing, in a domain all."""
        first = next(part for part in self.parts if part.split == "test")
        return self.styles if self.test_only else first.styles

    @property
    def test_only(self) -> bool:
        return all(part.split == "test" for part in self.parts)


@dataclass(frozen=True)
class Scene:
    """One image of the benchmark: its place, and what it is drawn from."""

    split: str
    label: int
    classname: str
    style: int  # index into STYLES
    thing: int  # row of the art
    rendering: int
    number: int  # in its part
    look: Look

    @property
    def style_name(self) -> str:
        return STYLES[self.style]

    @cached_property
    def path(self) -> str:
        """The image file, relative to the data set's folder."""
        return f"{self.split}/{self.classname.replace(' ', '_')}/{self.style_name}_{self.number}.png"


HERE = Path(__file__).parent
HARD = HERE / "hard_scenes.txt"
HARD_CANDIDATES = range(300, 316)  # rendering numbers


@lru_cache(maxsize=1)
def hard_scenes() -> dict[str, tuple[int, ...]]:
    """Return for each thing the rendering numbers that a plain network got wrong; some things have none."""
    lines = (line.split(":") for line in HARD.read_text(encoding="utf-8").splitlines() if not line.startswith("#"))
    return {name: tuple(map(int, numbers.split())) for name, numbers in lines}


_UNSEEN_ART = (
    Part("train", ("noto", "fluent"), range(8)),
    Part("val", ("noto", "fluent"), range(100, 102)),
    Part("test", ("twemoji",), range(200, 208)),  # an artist who is left out
    Part("test", ("noto", "fluent"), range(200, 208)),  # new scenes by the artists of the training: DATASET.TARGET_DOMAINS
)
_ONE_ARTIST = (  # 64 photos a class, and new photos from the same source
    Part("train", ("twemoji",), range(1000, 1064)),
    Part("val", ("twemoji",), range(1100, 1108)),
    Part("test", ("twemoji",), range(200, 208)),
)
TARGETS = {
    "plants": "46 fruits, vegetables, flowers and other plants.",
    "meals": "60 dishes, sweets, drinks and tableware.",
    "mammals": "45 mammals.",
    "creatures": "40 birds, insects, sea animals, reptiles and other animals.",
    "leisure": "77 things of sports, games, festivities and music.",
    "vehicles": "57 vehicles on land, water and in the air, and what belongs to traffic.",
    "places": "57 buildings, landscapes and other places.",
    "sky": "39 kinds of weather, stars and clocks.",
    "household": "78 clothes, tools, lamps and other things of the house.",
    "office": "68 things of offices: stationery, books, mail, telephones and computers.",
}
DOMAINS = {
    "v2": Plan("The 567 things in scenes of other statistics.", (Part("test", ("twemoji",), range(400, 404), OTHER_SCENES),)),
    "sketch": Plan(
        "The 567 things as line art on paper.", (Part("test", ("contrast", "monotone"), range(200, 202), SKETCHES),)
    ),
    "r": Plan(
        "Renditions of the 567 things: glossy, as pixel art and embroidered.",
        (Part("test", ("glossy",), range(200, 202)), Part("test", ("pixels", "stitches"), range(200, 201))),
    ),
    "a": Plan(
        "Scenes of the 567 things that a plain network gets wrong.",
        (Part("test", ("twemoji",), HARD_CANDIDATES, chosen=hard_scenes),),
    ),
}
PHOTOS = {f"photos_{name}": name for name in TARGETS}  # the things of a target by one artist, to train on and to test on
PLANS = {
    "all": Plan("All 567 things.", _UNSEEN_ART),
    **{name: Plan(about, _UNSEEN_ART) for name, about in TARGETS.items()},
    **DOMAINS,
    **{name: Plan(f"Photos of one source: {TARGETS[target]}", _ONE_ARTIST) for name, target in PHOTOS.items()},
}
SHA256 = json.loads(HERE.joinpath("sha256.json").read_text(encoding="utf-8"))  # of the pixels, in the order of `scenes_of`


def _class_rows(name: str) -> dict[str, int]:
    """Return the row in the art of each class of a data set, the classes sorted by name."""
    target = PHOTOS.get(name, name)
    rows = ((thing.name, row) for row, thing in enumerate(things()) if target not in TARGETS or thing.target == target)
    return dict(sorted(rows))


def class_names(name: str) -> list[str]:
    """Return the class names of a data set, sorted: the label of a name is its place."""
    return list(_class_rows(name))


@lru_cache(maxsize=4)
def scenes_of(name: str) -> tuple[Scene, ...]:
    """Return all scenes of a data set: class by class, in a class by part, then style, then number."""
    parts = [(part, part.chosen() if part.chosen else None) for part in PLANS[name].parts]
    return tuple(
        Scene(part.split, label, classname, STYLES.index(style), row, rendering, rendering - part.renderings.start, part.look)
        for label, (classname, row) in enumerate(_class_rows(name).items())
        for part, chosen in parts
        for style in part.styles
        for rendering in (part.renderings if chosen is None else chosen.get(classname, ()))
    )


def draw(scenes: Sequence[Scene]) -> np.ndarray:
    """Draw scenes in memory: (n, 64, 64, 3) uint8 RGB."""
    images = np.empty((len(scenes), SIZE, SIZE, 3), np.uint8)
    groups: dict[tuple[int, Look], list[int]] = {}
    for place, scene in enumerate(scenes):
        groups.setdefault((scene.style, scene.look), []).append(place)
    for (style, look), places in groups.items():
        rows, row = np.unique([scenes[i].thing for i in places], return_inverse=True)
        numbers = [drawing_number(style, scenes[i].thing) for i in places]
        art = drawings(STYLES[style])[rows]
        images[places] = draw_scenes(art, row, numbers, [scenes[i].rendering for i in places], look)
    return images
