"""What may stand in one cell of a table: results of runs that differ in their seed alone, on the same images."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdpl.experiments.report.runs import Score

IMAGES, UNKNOWN = "test images", "not recorded"
TEXTS = ("teacher's sentences", "teacher's prompts")


def one_name_each(runs: Sequence[dict[str, Any]]) -> None:
    """Give every CLIP one name, in place: that of the first run which has recorded its weights, wherever they lie."""
    names: dict[tuple, str] = {}
    for run in runs:
        facts = (run.get("manifest") or {}).get("facts") or {}
        shown = {"backbone": (facts.get("student"),), "teacher": (facts.get("teacher"), *map(facts.get, TEXTS))}
        if "clip" in facts:
            shown["teacher" if run["trainer"] == "ZeroshotTeacher" else "backbone"] = (facts["clip"],)
        for key, weights in shown.items():
            if weights[0] and run.get(key):
                run[key] = names.setdefault((key, *map(str, weights)), run[key])


def apart(scores: "Iterable[Score]", notes: list[str], split: str) -> "list[Score]":
    """Return the scores, with methods of their own for those of one cell whose manifests differ in more than the seed.

    Results on other test images are kept apart too; validation images are drawn by the seed, so of these only what they are
    drawn from is compared. What some results of a cell have not recorded is no difference, and is noted.
    """
    same_images = split == "test"
    cells: dict[tuple, list[Score]] = defaultdict(list)
    for score in scores:
        cells[score.cell].append(score)
    told, older, found = set(), defaultdict(list), []
    for cell, members in cells.items():
        name, unknown = f"{cell[0].name} on {cell[-1]}", set()
        recipes = [score.recipe for score in members]
        if several_recipes := len(set(recipes)) > 1:
            told.add(f"{name}: runs with different manifests, in rows of their own (see manifest.json in each).")
        if several_images := same_images and len({score.images for score in members if score.images}) > 1:
            told.add(f"{name}: results on different images, in rows of their own (see 'images' in results.json).")
        elif len({bool(score.images) for score in members}) > 1:
            unknown.add(IMAGES)
        if unknown:
            older[", ".join(sorted(unknown))].append(name)
        for score, recipe in zip(members, recipes, strict=True):
            parts = [recipe or "no manifest"] * several_recipes + [f"images {score.images or UNKNOWN}"] * several_images
            found.append(replace(score, method=replace(score.method, recipe=", ".join(parts))) if parts else score)
    for listed, names in older.items():
        more = f" and {len(set(names)) - 1} more" if len(set(names)) > 1 else ""
        told.add(f"{min(names)}{more}: results of an earlier version are among them, so these are not compared: {listed}.")
    notes += sorted(told)
    return found
