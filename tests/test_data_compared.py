"""Results are of the images that they say: other training or test images are another run, in a folder, a sweep and a table."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from dassl.engine import build_trainer
from support import config, image_file
from support.files import RUN, result
from support.trainings import build

import kdpl.trainers  # noqa: F401  registers them
from kdpl import sweep
from kdpl.common import exits
from kdpl.config.manifest import Manifest, OtherRunError, is_continued, read_manifest
from kdpl.datasets import facts
from kdpl.datasets.facts import data_facts
from kdpl.experiments.report.runs import read_scores
from kdpl.experiments.results import check_images, missing_datasets, read_results, write_results
from kdpl.experiments.sweep.plan import read_sweep
from kdpl.experiments.sweep.runs import runs_of

NAMES = ("cat", "dog")


@pytest.fixture
def photos(tmp_path):
    """A folder of photos of two classes, with labelled ones to test, and its names."""
    root = tmp_path / "photos"
    for label, name in enumerate(NAMES):
        for i in range(3):
            image_file(root / name / f"{i}.bmp", 32, 10 * label + i)
            image_file(root / "test" / name / f"{i}.bmp", 32, 100 + 10 * label + i)
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    return root


def run_on(photos, output, *options, trainer="KDPL_CoOp", seed=1):
    names = photos.parent / "names.txt"
    settings = (
        "DATASET.CLASSNAMES",
        names,
        "OPTIM.MAX_EPOCH",
        1,
        "DATALOADER.TRAIN_X.BATCH_SIZE",
        2,
        "DATALOADER.NUM_WORKERS",
        0,
    )
    cfg = config(
        trainer, "image_folder", output, "--root", photos, "--seed", seed, "DATASET.CLASSNAMES", names, *settings, *options
    )
    cfg.freeze()
    return build_trainer(cfg)


def replace_images(folder, seed=1000):
    for i, path in enumerate(sorted(Path(folder).rglob("*.bmp"))):
        image_file(path, 32, seed + i)


@pytest.mark.slow
def test_a_result_is_not_replaced_by_one_on_other_images(photos, tmp_path):
    run_on(photos, tmp_path / "out").train()
    (entry,) = read_results(tmp_path / "out")["results"]
    assert entry["images"].startswith("6 (") and entry["images"] in read_manifest(tmp_path / "out").tests.values()
    run_on(photos, tmp_path / "out").train()
    before = read_results(tmp_path / "out")["results"]
    assert len(before) == 1, "the same images"
    replace_images(photos / "test")
    with pytest.raises(OtherRunError, match=r"result on ImageFolder \(test, all classes\) that was measured on other"):
        run_on(photos, tmp_path / "out").train()
    evaluated = run_on(photos, tmp_path / "out")
    evaluated.load_model(str(tmp_path / "out"))
    with pytest.raises(OtherRunError, match="measured on other images"):
        evaluated.test()
    zero_shot = run_on(photos, tmp_path / "zero", trainer="ZeroshotCLIP")
    zero_shot.test()
    replace_images(photos / "test", 2000)
    with pytest.raises(OtherRunError, match="measured on other images"):
        run_on(photos, tmp_path / "zero", trainer="ZeroshotCLIP").test()
    assert read_results(tmp_path / "out")["results"] == before


@pytest.mark.slow
def test_data_are_looked_at_as_a_run_records_them(photos, tmp_path):
    """So a sweep that compares them takes no finished run for another one."""
    for trainer, options in (("KDPL_CoOp", ()), ("KDPL_CoOp", ("DATASET.NUM_SHOTS", 1)), ("CoOp", ("DATASET.NUM_SHOTS", 2))):
        run = run_on(photos, tmp_path / "out", *options, trainer=trainer)
        run.load_for_training()
        now = data_facts(run.cfg, "train")
        assert now == {key: run.manifest.facts[key] for key in now}
        assert ("drawn from" in now) == bool(options)
    for dataset in ("emoji_meals", "emoji_vehicles"):
        run = build("KDPL_CoOp", tmp_path / "emoji", "TEST.NO_TEST", True, dataset=dataset)
        run.load_for_training()
        now = data_facts(run.cfg, "train")
        assert now == {key: run.manifest.facts[key] for key in now} and "drawn from" in now
        from kdpl.trainers.tested import tested_images

        assert tested_images(run, run.test_loader)[0] == data_facts(run.cfg, "test")["images"]


def test_an_earlier_result_without_images_is_replaced_with_a_note(tmp_path, capsys):
    write_results(tmp_path, RUN, result())
    check_images(tmp_path, RUN, result(images="6 (a)"))
    assert "of an earlier version, which did not record its images: it is replaced" in capsys.readouterr().out
    write_results(tmp_path, RUN, result(images="6 (a)"))
    check_images(tmp_path, RUN, result(images="6 (a)"))
    check_images(tmp_path, RUN | {"seed": 2}, result(images="6 (b)"))  # of another run: it moves aside
    with pytest.raises(OtherRunError, match=r"6 \(a\) there, 6 \(b\) now"):
        check_images(tmp_path, RUN, result(images="6 (b)"))


def finished(folder, seed, images="6 (a)", accuracy=40.0, shots=1, split="test", **facts):
    recipe = {"DATASET.NUM_SHOTS": shots, "SEED": seed}
    content = Manifest(recipe, {"training images": f"1 ({seed})", **facts}).to_dict()
    write_results(folder, RUN | {"seed": seed, "manifest": content}, result(accuracy=accuracy, images=images, split=split))


def test_old_and_new_images_do_not_stand_in_one_cell(tmp_path):
    finished(tmp_path / "a", 1)
    finished(tmp_path / "b", 2)
    scores, notes = read_scores([tmp_path])
    assert {s.method.recipe for s in scores} == {""} and not notes
    finished(tmp_path / "c", 3, images="6 (b)")
    scores, notes = read_scores([tmp_path])
    assert {s.method.recipe for s in scores} == {"images 6 (a)", "images 6 (b)"}
    assert any("results on different images, in rows of their own" in note for note in notes)
    shutil.rmtree(tmp_path / "c")
    finished(tmp_path / "b", 2, **{"drawn from": "9 (x)"})
    finished(tmp_path / "a", 1, **{"drawn from": "9 (y)"})
    assert len({s.method for s in read_scores([tmp_path])[0]}) == 2, "other images to draw from"


def test_validation_images_differ_from_seed_to_seed_in_one_cell(tmp_path):
    for seed in (1, 2):
        finished(tmp_path / str(seed), seed, images=f"6 ({seed})", split="val", **{"drawn from": "9 (x)"})
    scores, notes = read_scores([tmp_path], "val")
    assert len(scores) == 2 and len({s.method for s in scores}) == 1 and not notes, "few images are drawn by the seed"
    finished(tmp_path / "2", 2, images="6 (2)", split="val", **{"drawn from": "9 (y)"})
    assert len({s.method for s in read_scores([tmp_path], "val")[0]}) == 2, "other images to draw from"


def test_what_an_earlier_version_did_not_record_is_noted_and_no_difference(tmp_path):
    finished(tmp_path / "a", 1, images="")
    finished(tmp_path / "b", 2, **{"drawn from": "9 (x)", "student's design": {"text heads": "2"}})
    scores, (note,) = read_scores([tmp_path])
    assert len(scores) == 2 and len({s.method for s in scores}) == 1
    assert "earlier version are among them, so these are not compared: drawn from, student's design, test images" in note


# ----------------------------------------------------------------------------------------------------- more epochs, clocks


def test_more_epochs_are_the_same_run_and_its_earlier_results_are_kept_apart(tmp_path, capsys):
    config, change = {"OPTIM.MAX_EPOCH": 2, "SEED": 1}, {"OPTIM.MAX_EPOCH": [2, 3], "epoch": 2}
    then, now = Manifest(config, {}), Manifest({**config, "OPTIM.MAX_EPOCH": 3}, {}, changes=[change])
    assert is_continued(then, now) and is_continued(then, then) and not is_continued(now, then)
    assert not is_continued(then, Manifest({**now.config, "SEED": 2}, {}, changes=[change]))
    assert not is_continued(then, Manifest(now.config, {}))
    write_results(tmp_path, RUN | {"epoch": 2, "manifest": then.to_dict()}, result())
    write_results(tmp_path, RUN | {"epoch": 3, "manifest": now.to_dict()}, result("EmojiVehicles"))
    printed = capsys.readouterr().out
    assert "is from another run" not in printed and "has the results of this run after 2 epochs" in printed
    assert [r["dataset"] for r in read_results(tmp_path)["results"]] == ["EmojiVehicles"]
    assert [r["dataset"] for r in read_results(tmp_path / "results.json.epoch-2-1")["results"]] == ["EmojiMeals"]


def test_results_are_ordered_by_the_prompts_that_they_are_of_and_not_by_clocks(tmp_path):
    manifest = Manifest({"SEED": 1}, {}).to_dict()

    def both(trained, tested, clock="1999-01-01T00:00:00+00:00"):
        for folder, run in (("train", trained), ("test", tested)):
            (tmp_path / folder / "results.json").unlink(missing_ok=True)
            path = write_results(tmp_path / folder, RUN | run, result(classes="new"))
        content = json.loads(path.read_text())
        content["results"][0]["time"] = clock
        path.write_text(json.dumps(content))
        return missing_datasets(tmp_path / "test", classes="new", model_dir=tmp_path / "train")

    same, other = {"prompts": "a", "manifest": manifest}, {"prompts": "b", "manifest": manifest}
    assert both(same, same) == [] and both(same, other, "2999-01-01T00:00:00+00:00") == ["any"]
    older = {"manifest": manifest, "epoch": 2}
    assert both(older, older) == [] and both({**older, "epoch": 3}, older, "2999-01-01T00:00:00+00:00") == ["any"]
    assert both({}, {}) == ["any"], "where nothing else is recorded, clocks decide"


# -------------------------------------------------------------------------------------------------------------- sweeps


@pytest.mark.slow
def test_a_sweep_sees_other_data(photos, tmp_path, capsys):
    (tmp_path / "s.yaml").write_text(
        f"""
protocol: few_shot
trainers: [KDPL_CoOp]
datasets: [image_folder]
seeds: [1]
shots: [0]
config: emoji
data: {photos}
output: {tmp_path / "out"}
options: {{DATASET.CLASSNAMES: {tmp_path / "names.txt"}, OPTIM.MAX_EPOCH: 1, DATALOADER.TRAIN_X.BATCH_SIZE: 2}}
executor: {{gpus: 0}}
"""
    )

    def status():
        for cached in (facts._facts, facts._dataset):
            cached.cache_clear()  # as in a new process
        code = sweep.main(["status", str(tmp_path / "s.yaml")])
        return code, capsys.readouterr().out

    (run,) = runs_of(read_sweep(tmp_path / "s.yaml"))
    cfg = run.steps[0].cfg_of("image_folder")
    build_trainer(cfg).train()
    assert status()[0] == 0 and run.done()
    noisy = replace(run.steps[0], look=lambda cfg, split: print("Creating a 1-shot dataset") or {"images": "6 (a)"})
    assert noisy.data_now("image_folder", "test") == {"images": "6 (a)"} and capsys.readouterr().out == ""
    originals = shutil.copytree(photos, tmp_path / "originals")
    replace_images(photos / "test")
    code, printed = status()
    assert code == exits.FAILED and "stale" in printed and "images of ImageFolder (test): 6 (" in printed
    replace_images(photos)
    assert "training images: 6 (" in status()[1]
    shutil.rmtree(photos)
    shutil.copytree(originals, photos)
    assert status()[0] == 0, "the same images again"
    (tmp_path / "names.txt").write_text("dog\ncat")
    code, printed = status()
    assert code == exits.FAILED and "class names: the same in another order" in printed
    assert sweep.main([str(tmp_path / "s.yaml"), "--dry-run", "--redo"]) == 0
    assert "--fresh" in capsys.readouterr().out
    shutil.rmtree(photos)
    code, printed = status()
    assert code == 0, "without data there is nothing to compare"
