"""Results are of the images that they say: other training or test images are another run, in a folder, a sweep and a table."""

import shutil
from pathlib import Path

import pytest
from dassl.engine import build_trainer
from support import config, image_file
from support.files import RUN, result

import kdpl.trainers  # noqa: F401  registers them
from kdpl.config.manifest import Manifest, OtherRunError
from kdpl.experiments.report.runs import read_scores
from kdpl.training.results import read_results, write_results

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


def run_on(photos, output):
    names = photos.parent / "names.txt"
    settings = ("OPTIM.MAX_EPOCH", 1, "DATALOADER.TRAIN_X.BATCH_SIZE", 2, "DATALOADER.NUM_WORKERS", 0)
    where = ("--root", photos, "--seed", 1, "DATASET.CLASSNAMES", names)
    cfg = config("KDPL_CoOp", "image_folder", output, *where, *settings)
    cfg.freeze()
    return build_trainer(cfg)


def replace_images(folder, seed=1000):
    for i, path in enumerate(sorted(Path(folder).rglob("*.bmp"))):
        image_file(path, 32, seed + i)


@pytest.mark.slow
def test_a_result_is_not_replaced_by_one_on_other_images(photos, tmp_path):
    run_on(photos, tmp_path / "out").train()
    (entry,) = read_results(tmp_path / "out")["results"]
    assert entry["images"].startswith("6 (")
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
    assert read_results(tmp_path / "out")["results"] == before


def finished(folder, seed, images="6 (a)", accuracy=40.0, shots=1, split="test", **facts):
    recipe = {"DATASET.NUM_SHOTS": shots, "SEED": seed}
    content = Manifest(recipe, {"training images": f"1 ({seed})", **facts}).to_dict()
    shutil.rmtree(folder, ignore_errors=True)
    write_results(
        folder,
        RUN | {"seed": seed, "manifest": content, "config": "DATASET: {NAME: EmojiMeals}"},
        result(accuracy=accuracy, images=images, split=split),
    )


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
