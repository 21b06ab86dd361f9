"""The data sets of the embedded benchmark as lists of scenes: which thing, in which style, how often, for what."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kdpl.datasets.emoji.art import STYLES, drawing_number, drawings, things
from kdpl.datasets.emoji.draws import SIZE
from kdpl.datasets.emoji.generator import OTHER_SCENES, SCENES, SKETCHES, Look, draw_scenes


class Part(NamedTuple):
    """Scenes of every class in every one of some styles.

    Attributes:
        split: train, val or test.
        styles: names of styles.
        renderings: rendering numbers.
        look: the scenes' statistics.
        chosen: of each thing the rendering numbers that are left; None: all.
    """

    split: str
    styles: tuple[str, ...]
    renderings: range
    look: Look = SCENES
    chosen: Callable[[], dict[str, Collection[int]]] | None = None


class Plan(NamedTuple):
    """A data set.

    Attributes:
        about: what its classes are.
        parts: its scenes, those of a split one after another.
    """

    about: str
    parts: tuple[Part, ...]

    @property
    def styles(self) -> tuple[str, ...]:
        """The styles in the order of their first part."""
        return tuple(dict.fromkeys(style for part in self.parts for style in part.styles))

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


HARD = Path(__file__).with_name("hard_scenes.txt")
HARD_CANDIDATES = range(300, 316)  # rendering numbers


@lru_cache(maxsize=1)
def hard_scenes() -> dict[str, tuple[int, ...]]:
    """Return for each thing the rendering numbers that tools/choose_hard.py chose; some things have none."""
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
    "v2": Plan(
        "The 567 things in scenes of other statistics.",
        (Part("test", ("twemoji",), range(400, 404), OTHER_SCENES),),
    ),
    "sketch": Plan(
        "The 567 things as line art on paper.",
        (Part("test", ("contrast", "monotone"), range(200, 202), SKETCHES),),
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
SHA256 = {  # of a data set's pixels, in the order of `scenes_of`
    "v2": "56bf3bb5608ec7e731075b314a4185ca4eb30bf709e210b43f6a61651095ceed",
    "sketch": "7fc0252f1fc32ae2b85b8273b0889bd6d078087f2c54510685531e48027d05f0",
    "r": "aaff583976ddba7b44ce03b82f5609b812eae7479df8cdb1312c556859ba813c",
    "a": "dec706ef630dc96bf5eca441740cb6e2819bc074452d73a61d54910416ecb876",
    "plants": "e9599507f4f6b5fe40ba026632781b97bf3afb4488bd6d985fca934671f0020b",
    "meals": "b10ea61f289c52cd1ade655de7e2b79aa1e16dc64fa55b8dbd833e416ab5cc5b",
    "mammals": "60652fe4f2dc8cd0b924a5659a7580400f925a04eaa6210d516404203fde1887",
    "creatures": "e0dc7983250ed7774a7808571ac1ee4a0d848db5ce3f01df4d6e8fcbde6063b8",
    "leisure": "571b91c65567b1f6b9c6050bf8d4774343078a7106e4deed50418fc1f6687cd8",
    "vehicles": "613cf7e499937d5ff0c1d0ee1f2e0b86a7a3666b00ee0f59d85268068c998447",
    "places": "63375c6f6c05977cace87c190ee1ccb6a3356e14873fa06a38025496171ca722",
    "sky": "a894a16f7aab2091b8af3321d1391fc17ada2464793ad2d8d8ed81ebfaa92b8b",
    "household": "699494074d08ac2404a6f6cc6485f7aa1744cd474da8ea89cdec52e14e8b5650",
    "office": "dcfb9757fef9ca61070b2d210c15df769ed021972a44985c7376b706892133e0",
    "all": "e46f66364f18ff001b44ae79349962bbeb32dfbb7448aebc745f3eecf807832b",
    "photos_plants": "fa6a6b3c59f4683b8ba9e6c1c3d9321bdbfe38abc3557aff56f7eb20a9151190",
    "photos_meals": "cce6c3761ed3bd22d7b90bd20cff0650b47d3310f5254a1e0f9076796a392a8f",
    "photos_mammals": "61d8abd652468829ee72206c91e8b4c08079287153dfe5caff28b98420eaacb4",
    "photos_creatures": "390d097a3833bdb54c08c86c54d13f11c1c443df94706a9c9286a5c28c2cc9a8",
    "photos_leisure": "c6a06d2ded87f2869bf741113788feb91697f92304191f0ec07526a042e8f09f",
    "photos_vehicles": "55ee0f6badff0dac2a2db1b56f4c044fc9071b1d15b96ce4f939b0863f1ab987",
    "photos_places": "733a94e89b142a35ea66718893770dc118e69ed37b856e2a42730f796bf26796",
    "photos_sky": "e8bc9aaf969daf2a5a93f700aea36a4c2be67b78b9957e065bd21173053d81a1",
    "photos_household": "3261fc91bab4f8588e3798bb2b59645cfeec4b97a114f04c422c69f33a73cca1",
    "photos_office": "b800e51df91719868f09ca166f69b3e787e04195b6818de43dc4f63573e1288b",
}


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
