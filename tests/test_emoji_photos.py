"""Photos of one's own in the embedded benchmark: data that are apart, a search without test images, pages of the runs."""

import hashlib
import re
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support import ROOT

import kdpl

# isort: split
from dassl.config import get_cfg_default
from dassl.data.datasets import build_dataset

from kdpl.config.merging import literal
from kdpl.datasets.emoji import plans, scenes
from kdpl.experiments.report.cells import Draws
from kdpl.experiments.sweep.runs import runs_of
from kdpl.photos import learn
from kdpl.training.results import write_results

sys.path.insert(0, str(ROOT / "benchmarks/emoji"))
import claims
import photos
import photos_labels
import photos_views
import run
import search_photos

SEARCHED = ("photos_sky", "photos_office", "photos_creatures", "photos_places")


@pytest.mark.slow
def test_no_photo_is_in_two_splits_and_none_of_another_data_set_is_trained_on():
    trained: dict[tuple, set[str]] = {}
    for name in plans.PHOTOS:
        for scene in plans.scenes_of(name):
            trained.setdefault((scene.style, scene.thing, scene.rendering), set()).add(scene.split)
            assert scene.style_name == "twemoji"
    assert all(len(splits) == 1 for splits in trained.values()), "a scene of two splits"
    learned = {scene for scene, splits in trained.items() if splits != {"test"}}
    names = plans.PLANS.keys() - plans.PHOTOS.keys()
    others = {(s.style, s.thing, s.rendering) for name in names for s in plans.scenes_of(name)}
    assert len(learned) == 567 * 72 and not learned & others, "photos that are a test image elsewhere"


def test_a_class_has_64_photos_8_for_validation_and_8_of_the_same_source_for_testing():
    for name, target in plans.PHOTOS.items():
        assert scenes.class_names(name) == scenes.class_names(target)
        listed = [(s.label, s.split) for s in plans.scenes_of(name)]
        assert {split: listed.count((0, split)) for split in ("train", "val", "test")} == {"train": 64, "val": 8, "test": 8}
        assert len(listed) == 80 * len(scenes.class_names(name))


@pytest.mark.slow
def test_photos_are_trained_on_and_tested_on_by_default(tmp_path, monkeypatch):
    few = [scene for scene in plans.scenes_of("photos_sky") if scene.label % 20 == 0]
    monkeypatch.setattr(scenes, "scenes_of", lambda name: few)
    monkeypatch.setitem(plans.SHA256, "photos_sky", hashlib.sha256(plans.draw(few)).hexdigest())
    cfg = get_cfg_default()
    kdpl.extend_cfg(cfg)
    cfg.merge_from_file(str(ROOT / "configs/datasets/emoji_photos_sky.yaml"))
    cfg.DATASET.ROOT, cfg.SEED, cfg.DATASET.NUM_SHOTS = str(tmp_path), 1, 4
    data = build_dataset(cfg)
    folder = tmp_path / "emoji_scenes/photos_sky"
    splits = [{Path(d.impath).relative_to(folder).as_posix() for d in split} for split in (data.train_x, data.val, data.test)]
    assert [len(split) for split in splits] == [2 * 4, 2 * 4, 2 * 8]
    assert [{path.split("/")[0] for path in split} for split in splits] == [{"train"}, {"val"}, {"test"}]


# ------------------------------------------------------------------------------------------------------------- the search


def test_the_search_sees_data_sets_that_no_table_of_photos_shows_and_no_test_image(monkeypatch, tmp_path):
    swept, read = [], []
    monkeypatch.setattr(search_photos, "run_sweep", lambda sweep, do: swept.append(sweep) or 0)
    monkeypatch.setattr(search_photos, "read_scores", lambda folders, split: read.append(split) or ([], []))
    for learner in search_photos.LEARNERS.values():
        trainers = [prefix + learner.trainer for prefix in search_photos.LABELS.values()]
        with pytest.raises(SystemExit, match="0 results in"):
            search_photos.measure(learner, trainers, search_photos.Point(0.05, 12), tmp_path, 1)
    assert set(read) == {"val"} and len(swept) == len(search_photos.LEARNERS)
    shown = {name for name in photos.sweep_in("photos_16", tmp_path).datasets}
    assert len(shown) == 6 and not shown & set(search_photos.DATASETS)
    for sweep in swept:
        keys = dict(zip(sweep.options[::2], sweep.options[1::2], strict=True))
        assert keys["TEST.SPLIT"] == "val" and keys["OPTIM.LR"] == "0.05" and keys["OPTIM.MAX_EPOCH"] == "12"
        assert sweep.datasets == search_photos.DATASETS and sweep.shots == (16,)
        assert all(planned.steps[0].settings for planned in runs_of(replace(sweep, seeds=(1,)))), "no run refuses its settings"


def points(**accuracies: tuple[float, float]) -> search_photos.Points:
    """Return points by names such as lr0_05_e12."""
    found = {}
    for name, values in accuracies.items():
        rate, epochs = re.fullmatch(r"lr(\d+_\d+)_e(\d+)", name).groups()
        of = dict(zip((("sky", 1), ("sky", 2)), values, strict=True))
        found[search_photos.Point(float(rate.replace("_", ".")), int(epochs))] = of
    return found


def test_the_best_rate_decides_and_both_sides_have_the_epochs_that_are_best_for_both():
    without = points(lr0_01_e12=(50, 50), lr0_05_e12=(60, 60), lr0_25_e12=(55, 64), lr0_05_e24=(61, 61))
    labels = points(lr0_01_e12=(70, 70), lr0_05_e12=(70, 70), lr0_01_e24=(65, 65))
    chosen = search_photos.choose({"KDPL_CoOp": without, "CoOp": labels})
    assert chosen == {"KDPL_CoOp": (0.05, 12, 16), "CoOp": (0.01, 12, 16)}, "24 epochs gain 1 and lose 5"
    more = search_photos.choose({"KDPL_CoOp": without, "CoOp": labels | points(lr0_01_e24=(70, 70))})
    assert more == {"KDPL_CoOp": (0.05, 24, 16), "CoOp": (0.01, 24, 16)}


def test_a_rate_beyond_the_edge_is_tried():
    assert search_photos.beyond_the_edge(points(lr0_01_e12=(9, 9), lr0_05_e12=(8, 8)), 5) == 0.002
    assert search_photos.beyond_the_edge(points(lr0_01_e12=(8, 8), lr0_05_e12=(9, 9)), 5) == 0.25
    assert search_photos.beyond_the_edge(points(lr0_01_e12=(8, 8), lr0_05_e12=(9, 9), lr0_25_e12=(8, 8)), 5) is None


def test_the_number_of_updates_does_not_depend_on_the_photos_down_to_the_least_epochs(monkeypatch):
    monkeypatch.setattr(search_photos, "least_epochs", lambda: 6)
    assert [search_photos.epochs_for(n, 12) for n in (1, 4, 16, 64)] == [192, 48, 12, 6]


def test_the_epochs_of_many_photos_are_those_that_are_best_for_both_sides():
    def many(**values: float) -> search_photos.Points:
        return {search_photos.Point(0.5, int(name[1:]), 64): {("sky", 1): value} for name, value in values.items()}

    found = {"KDPL_TaskRes": many(e3=60, e6=70, e12=71, e24=72), "TaskRes": many(e3=80, e6=82, e12=81, e24=80)}
    assert {point.epochs for point in search_photos.choose_many(found).values()} == {6}, "of equal means the fewest epochs"
    assert search_photos.least_epochs() in search_photos.MANY_EPOCHS
    assert search_photos.least_epochs() == learn.LEAST_EPOCHS, "kdpl fit has what the search has chosen"


def test_views_are_compared_on_validation_scenes_with_the_chosen_settings(monkeypatch, tmp_path):
    points, found = [], {}

    def measure(learner, trainers, point, output, jobs, options):
        swept = search_photos.content(learner, trainers, point, output, jobs, options)
        points.append((point, output, swept["options"]))
        return {trainers[0]: {("sky", 1): 60.0 + len(points), ("sky", 2): 70.0}}

    monkeypatch.setattr(photos_views, "measure", measure)
    found = photos_views.run(tmp_path, 1)
    assert len({(point, output) for point, output, _ in points}) == len(points) == 2 * len(photos_views.VIEWS)
    chosen = search_photos.chosen()[photos.VECTORS, "KDPL_TaskRes"]
    for point, _, options in points:
        assert options["TEST.SPLIT"] == "val" and point.rate == chosen.rate
        assert point.epochs == search_photos.epochs_for(point.photos, chosen.epochs)
    assert [options["TRAINER.KDPL.VIEWS"] for _, _, options in points] == ["1", "1", "4"] * 2
    assert ["INPUT.TRANSFORMS" in options for _, _, options in points] == [False, True, True] * 2
    rows = photos_views.rows_of(found)
    assert [row["gain"] for row in rows] == ["0.00", "0.50", "1.00"] * 2 and rows[1]["standard error"] == "0.50"


def test_the_page_shows_the_views_that_were_measured():
    for (page, name), block in photos_views.blocks_of(photos_views.committed()).items():
        text = page.read_text(encoding="utf-8")
        assert run.with_block(text, name, block) == text, "python benchmarks/emoji/photos_views.py --publish"


def test_what_the_search_has_chosen_is_in_the_configurations():
    rows, chosen = search_photos.read_table(), search_photos.chosen()
    rows = [row for row in rows if row["photos"] == str(search_photos.SHOTS)]
    names = list(dict.fromkeys(row["learner"] for row in rows))
    assert names == list(search_photos.LEARNERS)[: len(names)] and {photos.VECTORS, photos.SPECIFIC} <= {*names}
    assert {(row["learner"], row["labels"]) for row in rows} == set(product(names, search_photos.LABELS))
    for (name, trainer), point in chosen.items():
        learner = search_photos.LEARNERS[name]
        text = (ROOT / f"configs/trainers/{trainer}/{learner.config}.yaml").read_text(encoding="utf-8")
        assert re.findall(r"(?m)^  (?:LR|MAX_EPOCH): (.*)$", text) == [f"{point.rate:g}", str(point.epochs)]
        tried = {float(row["rate"]) for row in rows if (row["learner"], row["trainer"]) == (name, trainer)}
        assert {*learner.rates} <= tried and min(tried) < point.rate < max(tried), "the best rate is not the last one tried"
    for name in names:
        of = [point.epochs for (each, _), point in chosen.items() if each == name]
        assert len(of) == 2 and len(set(of)) == 1, "as many updates with labels as without"


# ----------------------------------------------------------------------------------------------------------- the protocol


@pytest.mark.slow
def test_the_protocol_has_the_chosen_settings_and_the_updates_of_the_search(tmp_path):
    for name, (learner, shots) in photos.SWEEPS.items():
        sweep = photos.sweep_in(name, tmp_path)
        keys = {k: literal(v) for k, v in zip(sweep.options[::2], sweep.options[1::2], strict=True)}
        assert sweep.shots == (shots,) and sweep.output == tmp_path / "photos" and "OPTIM.LR" not in keys
        assert len(sweep.seeds) == {photos.VECTORS: 5, photos.SPECIFIC: 2, "": 1}[learner] and "TEST.SPLIT" not in keys
        if learner:
            (epochs,) = {point.epochs for (each, _), point in search_photos.chosen().items() if each == learner}
            assert keys["OPTIM.MAX_EPOCH"] == max(search_photos.least_epochs(), epochs * 16 // shots)
        for planned in runs_of(replace(sweep, seeds=sweep.seeds[:1], datasets=sweep.datasets[:1])):
            assert planned.steps[0].settings, "no run refuses its configuration"


def add(output: Path, dataset: str, trainer: str, right: int, shots: int = 16, seed: int = 1, config: str = "photos") -> None:
    """Write the result of a run in which of 8 images of each of 4 classes so many were right."""
    of = {"DATASET": {"NAME": dataset}}
    accuracy = 100 * right / 8
    write_results(
        output / f"photos/{dataset}/{trainer}/{config}_{shots}shots/seed{seed}",
        {"trainer": trainer, "backbone": "emoji_student", "teacher": "emoji_teacher" if trainer.startswith("KDPL") else None,
         "class_agnostic": False, "seed": seed, "shots": shots, "config": of, "config_name": config},
        {"dataset": dataset, "split": "test", "classes": "all", "source_domains": [], "target_domains": [], "num_classes": 4,
         "num_images": 32, "accuracy": accuracy, "error_rate": 100 - accuracy, "macro_f1": accuracy, "class_names": dataset,
         "right_by_class": " ".join([f"{right}/8"] * 4)},
    )  # fmt: skip


def test_the_share_is_of_the_gap_between_sentence_and_teacher(tmp_path):
    for dataset, more in (("EmojiPhotosMeals", 0), ("EmojiPhotosPlants", 1)):
        add(tmp_path, dataset, "ZeroshotCLIP", 2)
        add(tmp_path, dataset, "ZeroshotTeacher", 6 + more)
        for shots, seed in product(photos.SHOTS, (1, 2)):
            add(tmp_path, dataset, "KDPL_TaskRes", 3 + seed - more, shots, seed)
            add(tmp_path, dataset, "TaskRes", 6, shots, seed)
    add(tmp_path, "EmojiPhotosMeals", "KDPL_CoOp", 5)  # and none on plants, so that there is no mean
    rows = photos.rows_of(photos.read(tmp_path), Draws())
    measured = photos.Measured(rows)
    assert measured.datasets == ["meals", "plants", "mean"]
    assert measured.number("meals", photos.VECTORS, "no labels", 16, "share") == pytest.approx(100 * 2.5 / 4)
    assert measured.number("plants", photos.VECTORS, "no labels", 16, "share") == pytest.approx(100 * 1.5 / 5)
    assert measured.number("mean", photos.VECTORS, "no labels", 16, "share") == pytest.approx(100 * 2 / 4.5, abs=0.01)
    assert measured.number("mean", photos.VECTORS, "labels", 1) == 75.0
    assert ("mean", photos.SPECIFIC, "no labels", "16") not in measured.rows
    assert [row["seeds"] for row in rows if row["photos"] == "64"] == ["2"] * 6
    text = photos.tables(rows)
    assert "not on plants (30 %)" in text and "44.4 %: not reached" in text and "from 25.0 to 50.0 %" in text
    claims.write_csv(tmp_path / "photos.csv", rows)
    assert (tmp_path / "photos.csv").read_text().splitlines()[1].startswith('meals,"""a photo of a {}.""",,,25.00')


def test_the_committed_figures_are_of_six_data_sets_and_five_seeds():
    rows = photos.read_csv()
    names = {name.removeprefix("emoji_photos_") for name in photos.sweep_in("photos_16", Path("out")).datasets}
    assert {row["data set"] for row in rows} == {*names, photos.MEAN} and len(names) == 6
    of_vectors = [row for row in rows if row["learner"] == photos.VECTORS]
    assert len(of_vectors) == 7 * 2 * len(photos.SHOTS) and {row["seeds"] for row in of_vectors} == {"5"}
    assert photos.words(rows) in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_first_photos_of_each_class_are_labelled(tmp_path):
    planned = photos_labels.steps(tmp_path)
    assert len({step.folder for step, _ in planned}) == len(planned) == 6 * 5 * len(photos_labels.LABELLED)
    labels = [2, 0, 1, 0, 2, 2, 1, 0]

    class Photos(list):
        data_source = [SimpleNamespace(label=label) for label in labels]

    dataset = Photos({"img": torch.tensor([float(place)])} for place in range(len(labels)))
    trainer = SimpleNamespace(
        train_loader_x=SimpleNamespace(dataset=dataset),
        images=lambda batch: batch["img"],
        student=SimpleNamespace(frozen_image_features=lambda images: images),
    )
    found = photos_labels.labelled(trainer, 2)
    chosen = [int(place) for place in found.features[:, 0]]
    assert sorted(chosen) == [0, 1, 2, 3, 4, 6], "two of each class, the first ones"
    assert found.labels.tolist() == [labels[place] for place in chosen]


def test_the_page_shows_what_labels_for_a_few_add():
    rows = photos_labels.committed()
    for (page, name), block in photos_labels.blocks_of(rows).items():
        text = page.read_text(encoding="utf-8")
        assert run.with_block(text, name, block) == text, "python benchmarks/emoji/photos_labels.py --publish"
    assert len(rows) == 7 * 5 and {row["seeds"] for row in rows} == {"5"}
    alone = {row["data set"]: row["accuracy"] for row in photos.read_csv() if row["photos"] == "16" and is_alone(row)}
    assert {row["data set"]: row["accuracy"] for row in rows if row["labels a class"] == "0"} == alone


def is_alone(row: dict[str, str]) -> bool:
    return (row["learner"], row["labels"]) == (photos.VECTORS, "no labels")
