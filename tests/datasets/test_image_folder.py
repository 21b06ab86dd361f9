"""A folder of photos trains as the labelled benchmark does, without a label in reach; what is wrong with it is told."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from support import config, image_file

import kdpl
from kdpl.common.images import BadImageError
from kdpl.config.keys import ConfigError

NAMES = ["hot dog", "ice cream", "🍕 pizza, with cheese"]


def cfg_of(root, output, *options, trainer="KDPL_CoOp", names=None):
    given = []
    if names is not None:
        file = output.parent / "names.txt"
        file.write_text("\n".join(names), encoding="utf-8")
        given = ["DATASET.CLASSNAMES", file]
    return config(trainer, "image_folder", output, "--root", root, "--seed", 1, *given, *options)


def dataset_of(*args, **kwargs):
    from dassl.data.datasets import build_dataset

    return build_dataset(cfg_of(*args, **kwargs))


def trainer_of(cfg):
    from dassl.engine import build_trainer
    from dassl.utils import set_random_seed

    set_random_seed(1)
    return build_trainer(cfg)


def below(root, datums):
    return [d.impath.removeprefix(f"{root}/") for d in datums]


@pytest.fixture
def photos(tmp_path):
    """A folder with photos at several depths, an odd file, and a labelled test folder."""
    root = tmp_path / "photos"
    for i, name in enumerate(["b.png", "trip/a.jpg", "trip/hot dog/2020/c.png", "Ice_Cream/d.png"]):
        image_file(root / name, seed=i)
    for i, name in enumerate(["hot dog/1.png", "ice_cream/1.png", "ice_cream/more/2.png"]):
        image_file(root / "test" / name, seed=10 + i)
    (root / "notes.txt").write_text("no image")
    (root / ".DS_Store").touch()
    return root


TINY = ("OPTIM.MAX_EPOCH", 2, "TRAIN.PRINT_FREQ", 1000)


@pytest.mark.slow
def test_a_folder_without_labels_gives_the_prompts_and_the_accuracy_of_the_labelled_run(tmp_path):
    """Bit for bit: labels are used for nothing but the accuracy."""
    tiny = (*TINY, "DATASET.NUM_SHOTS", 2, "DATASET.SUBSAMPLE_CLASSES", "base", "DATASET.TARGET_DOMAINS", "twemoji")
    labelled = trainer_of(config("KDPL_CoOp", "emoji_leisure", tmp_path / "labelled", "--seed", 1, *tiny))
    labelled.train()

    root, data = tmp_path / "photos", labelled.dm.dataset
    for folder, datums in (("", data.train_x), ("test", data.test)):
        for i, datum in enumerate(datums):
            target = root / folder / (datum.classname if folder else "") / f"{i:05}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(datum.impath, target)
    cfg = cfg_of(root, tmp_path / "out", *TINY, names=labelled.class_names)
    run = trainer_of(cfg)
    assert {d.label for d in run.dm.dataset.train_x} == {0}
    run.train()
    assert torch.equal(run.student.learned.ctx, labelled.student.learned.ctx)
    assert run.last_result["accuracy"] == labelled.last_result["accuracy"]
    assert run.last_result["num_images"] == len(data.test)
    assert kdpl.load(tmp_path / "out").classnames == labelled.class_names


def test_all_images_outside_the_test_folder_are_for_training(photos, tmp_path, capsys):
    data = dataset_of(photos, tmp_path / "out", names=NAMES)
    assert below(photos, data.train_x) == ["Ice_Cream/d.png", "b.png", "trip/a.jpg", "trip/hot dog/2020/c.png"]
    assert [(d.label, d.classname) for d in data.test] == [(0, NAMES[0]), (1, NAMES[1]), (1, NAMES[1])]
    assert data.classnames == NAMES and data.val is None
    out = capsys.readouterr().out
    assert "not images, left out: 2" in out and "copies" not in out


def test_a_supervised_trainer_needs_a_class_folder_for_every_image(photos, tmp_path):
    with pytest.raises(ValueError, match=r"b\.png' has no label, and the trainer CoOp .* choose KDPL_CoOp"):
        dataset_of(photos, tmp_path / "out", trainer="CoOp", names=NAMES)
    (photos / "b.png").unlink()
    (photos / "trip" / "a.jpg").unlink()
    data = dataset_of(photos, tmp_path / "out", trainer="CoOp", names=NAMES)
    assert [(d.label, d.classname) for d in data.train_x] == [(1, NAMES[1]), (0, NAMES[0])]


def test_shots_are_drawn_blindly_and_by_the_seed(photos, tmp_path):
    for i in range(20):
        image_file(photos / f"{i}.png", seed=i)
    first, again = (dataset_of(photos, tmp_path / "out", "DATASET.NUM_SHOTS", 4, names=NAMES).train_x for _ in range(2))
    assert len(first) == 12 and below(photos, first) == below(photos, again)


@pytest.mark.slow
def test_a_training_without_names_or_test_images_measures_nothing(photos, tmp_path, capsys):
    shutil.rmtree(photos / "test")
    (tmp_path / "vocabulary.txt").write_text("hot dog\nice cream\nbicycle\nrain\n")
    agnostic = ("TRAINER.KDPL.CLASS_AGNOSTIC", True, "TRAINER.KDPL.VOCABULARY", tmp_path / "vocabulary.txt")
    cfg = cfg_of(photos, tmp_path / "out", *TINY, *agnostic, "TRAINER.KDPL.K_MAX", 3)
    run = trainer_of(cfg)
    before = run.student.learned.ctx.detach().clone()
    run.train()
    assert not torch.equal(before, run.student.learned.ctx)
    assert "no accuracy will be measured" in capsys.readouterr().out
    assert not (tmp_path / "out" / "results.json").exists()
    assert "Not measured" in (tmp_path / "out" / "MODEL_CARD.md").read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="no labelled test images"):
        run.test()
    clf = kdpl.load(tmp_path / "out")
    assert clf.classnames == []
    with pytest.raises(ValueError, match="set `classnames`"):
        clf(str(photos / "b.png"))
    clf.classnames = NAMES
    assert clf(str(photos / "b.png")).shape == (1, 3)
    with pytest.raises(ValueError, match="NUM_SHOTS 4 counts images for each class"):
        dataset_of(photos, tmp_path / "out", *agnostic, "DATASET.NUM_SHOTS", 4)


def cut_off(path, seed=3):
    image_file(path, 128, seed)
    path.write_bytes(path.read_bytes()[:-3000])


@pytest.mark.slow
def test_images_that_cannot_be_read_are_listed_and_left_out(photos, tmp_path, capsys):
    (photos / "empty.jpg").touch()
    (photos / "text.jpg").write_text("not an image")
    cut_off(photos / "cut.png")  # its header is whole: found when it is read
    cut_off(photos / "test" / "hot dog" / "cut.png")  # must not change the result: found at the start
    run = trainer_of(cfg_of(photos, tmp_path / "out", *TINY, names=NAMES))
    lines = capsys.readouterr().out.split("Unreadable images, left out: 3\n")[1].splitlines()
    listed = [f"'{photos}/test/hot dog/cut.png", f"'{photos}/empty.jpg", f"'{photos}/text.jpg"]
    assert [line.split("' ")[0] for line in lines[:3]] == listed
    assert len(run.dm.dataset.train_x) == 5 and len(run.dm.dataset.test) == 3
    run.train()
    out = capsys.readouterr().out
    assert out.count("replaced by the next readable one") == out.count(f"'{photos}/cut.png' cannot be read") == 1
    assert run.last_result["num_images"] == 3

    error = ("DATASET.ON_BAD_IMAGE", "error")
    with pytest.raises(BadImageError, match=r"Unreadable images in .*: 3\n.*cut\.png"):
        dataset_of(photos, tmp_path / "out", *error, names=NAMES)
    for path in ("empty.jpg", "text.jpg", "test/hot dog/cut.png"):
        (photos / path).unlink()
    run = trainer_of(cfg_of(photos, tmp_path / "new", *TINY, *error, names=NAMES))
    with pytest.raises(BadImageError, match=r"cut\.png"):
        run.train()


def test_photos_are_read_upright_and_plain_ones_as_by_dassl(tmp_path):
    from dassl.utils import read_image

    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    rows = np.zeros((64, 64, 3), np.uint8)
    rows[:32] = 255
    (tmp_path / "photos").mkdir()
    Image.fromarray(rows).save(tmp_path / "photos" / "turned.jpg", exif=exif, quality=100)
    image_file(tmp_path / "photos" / "plain.jpg")
    run = trainer_of(cfg_of(tmp_path / "photos", tmp_path / "out", names=NAMES))
    photos = run.train_loader_x.dataset
    photos.transform = lambda image: torch.from_numpy(np.array(image))
    plain, turned = (photos[i]["img"] for i in range(2))
    assert torch.equal(plain, torch.from_numpy(np.array(read_image(tmp_path / "photos" / "plain.jpg"))))
    assert turned[:, :30].float().mean() < 10 and turned[:, 34:].float().mean() > 245


@pytest.mark.parametrize(
    ("options", "names", "error", "message"),
    [
        ((), None, ValueError, "KDPL_CoOp needs class names: set DATASET.CLASSNAMES .* TRAINER.KDPL.CLASS_AGNOSTIC True"),
        ((), ["hot dog", "", "hot_dog"], ValueError, r"has the class name 'hot_dog' twice \('hot dog'\)"),
        ((), ["", " "], ValueError, "is empty: expected one class name per line"),
        (
            (),
            ["hot dog", "ice creams"],
            ValueError,
            "'.*test/ice_cream' is not named like one of the 2 .* Did you mean 'ice creams'",
        ),
        (("DATASET.CLASSNAMES", "name.txt"), None, FileNotFoundError, "There is no class-name file 'name.txt'"),
        (("DATASET.SUBSAMPLE_CLASSES", "base"), NAMES, ValueError, "takes 'all'"),
        (("DATASET.ROOT", "nowhere"), NAMES, FileNotFoundError, "'nowhere' is not a folder"),
        (("TRAINER.KDPL.CLASS_AGNOSTIC", True), None, ValueError, "is not named like one of the 0 class names"),
    ],
)
def test_what_is_wrong_with_a_folder_is_told(options, names, error, message, photos, tmp_path):
    with pytest.raises(error, match=message):
        dataset_of(photos, tmp_path / "out", *options, names=names)


def test_what_is_wrong_with_its_files_is_told(photos, tmp_path):
    image_file(photos / "test" / "loose.png")
    with pytest.raises(ValueError, match=r"loose\.png' has no class: put it into a subfolder of 'test'"):
        dataset_of(photos, tmp_path / "out", names=NAMES)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.txt").touch()
    with pytest.raises(FileNotFoundError, match=r"has no image at any depth \(other files: 1\)"):
        dataset_of(tmp_path / "empty", tmp_path / "out", names=NAMES)
    with pytest.raises(ConfigError, match=r"DATASET.ON_BAD_IMAGE 'skp' is not one of skip, error. Did you mean 'skip'"):
        trainer_of(cfg_of(photos, tmp_path / "out", "DATASET.ON_BAD_IMAGE", "skp", names=NAMES))


def test_a_list_names_the_images_to_train_on(photos, tmp_path):
    listed = tmp_path / "list.json"
    listed.write_text(json.dumps(["trip/a.jpg", "test/hot dog/1.png"]))  # of any folder: nothing is evaluated
    data = dataset_of(photos, tmp_path / "out", "DATASET.IMAGE_LIST", listed, names=NAMES)
    assert below(photos, data.train_x) == ["trip/a.jpg", "test/hot dog/1.png"] and not data.has_test
    listed.write_text("[")
    with pytest.raises(ValueError, match=r"is not a JSON list of paths below DATASET.ROOT"):
        dataset_of(photos, tmp_path / "out", "DATASET.IMAGE_LIST", listed, names=NAMES)
