"""The data sets of the embedded benchmark as lists of scenes: which thing, in which style, how often, for what."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
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

    @property
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
PLANS = {
    "all": Plan("All 567 things.", _UNSEEN_ART),
    **{name: Plan(about, _UNSEEN_ART) for name, about in TARGETS.items()},
    **DOMAINS,
}
SHA256 = {  # of a data set's pixels, in the order of `scenes_of`
    "v2": "56bf3bb5608ec7e731075b314a4185ca4eb30bf709e210b43f6a61651095ceed",
    "sketch": "7fc0252f1fc32ae2b85b8273b0889bd6d078087f2c54510685531e48027d05f0",
    "r": "aaff583976ddba7b44ce03b82f5609b812eae7479df8cdb1312c556859ba813c",
    "a": "dec706ef630dc96bf5eca441740cb6e2819bc074452d73a61d54910416ecb876",
    "plants": "063792779989e1dd35ac0fcb223a028b54da6fb064a17a6c785225c28de7826e",
    "meals": "215f5da3a93003830d8964975373d8afb920631781cd982af96345b4351c27ff",
    "mammals": "99a01848a3d55481bfef9e20a1b400089914a9a4e98557bd0eaa6c5915faddad",
    "creatures": "40c9b83971c1d66e6a4524326d25233773be1d229aa4263676c957fb3aeb8c8c",
    "leisure": "323d3b2417cd363e50f515c1b3677826baed39ffb0242903ff42fb95a45cc5c9",
    "vehicles": "e604a17d93fbdca2e989c043e4a3b6f14f118285845b10c2f732cd06b8b70fbb",
    "places": "49ddcb17ac0408046e489dd861266a5cf077d0c70b1931611d5d9adfc13f2b2f",
    "sky": "b375c6e36a51ebe81f6bae043f8d06a3c082e00a590dc26bc651742edb5e9b00",
    "household": "4ca067b40138654bb39149eb2cdb16a451066bab03cebbd237ae4bd777e27980",
    "office": "290731ae8a8111c9db988f83cecc1a345d5d7c8e63679684400942c2383bc5a8",
    "all": "4e1c35e525e7b4b9c39a7c6393b2709c8ce5b1e3f81d40e7d8522306860a091f",
}


def _class_rows(name: str) -> dict[str, int]:
    """Return the row in the art of each class of a data set, the classes sorted by name."""
    rows = ((thing.name, row) for row, thing in enumerate(things()) if name not in TARGETS or thing.target == name)
    return dict(sorted(rows))


def class_names(name: str) -> list[str]:
    """Return the class names of a data set, sorted: the label of a name is its place."""
    return list(_class_rows(name))


def scenes_of(name: str) -> list[Scene]:
    """Return all scenes of a data set: class by class, in a class by part, then style, then number."""
    parts = [(part, part.chosen() if part.chosen else None) for part in PLANS[name].parts]
    return [
        Scene(part.split, label, classname, STYLES.index(style), row, rendering, rendering - part.renderings.start, part.look)
        for label, (classname, row) in enumerate(_class_rows(name).items())
        for part, chosen in parts
        for style in part.styles
        for rendering in (part.renderings if chosen is None else chosen.get(classname, ()))
    ]


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
