"""A result is what it says it is: no folder is trained in, and no prompts are evaluated, under settings that are not theirs."""

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import RATE, ROOT, emoji_args, image_file, run_train
from support.trainings import assert_same, build, parameters

from kdpl.common import exits
from kdpl.config.manifest import Manifest, OtherRunError, read_manifest
from kdpl.training.checkpoint import load_checkpoint

QUICK = ("DATASET.NUM_SHOTS", 1, "DATASET.SUBSAMPLE_CLASSES", "base", "OPTIM.MAX_EPOCH", 2, "DATALOADER.NUM_WORKERS", 0)

UNTESTED = ("TEST.NO_TEST", True)


def train(folder, *options, trainer="KDPL_CoOp", check=False, flags=(), dataset="emoji_meals"):
    args = [*emoji_args(trainer, folder, dataset), *flags, *QUICK, *options]
    return run_train(*args, check=check)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "out"
    train(folder, check=True)
    return folder


@pytest.mark.slow
def test_a_manifest_is_in_the_folder_the_checkpoint_the_bundle_the_results_and_the_card(finished):
    import kdpl.bundle

    manifest = read_manifest(finished)
    assert manifest.config["OPTIM.LR"] == RATE and manifest.config["SEED"] == 1
    assert len(manifest.facts["class names"]) == 30 and manifest.facts["template"] == "a photo of a {}."
    assert manifest.facts["student"] != manifest.facts["teacher"] and manifest.facts["training images"].startswith("30 (")
    assert {"torch", "kdpl", "dassl", "threads", "processes", "device", "commit"} <= manifest.environment.keys()
    (path,) = finished.rglob("model.pth.tar-2")
    kept = [load_checkpoint(path)["kdpl"]["manifest"], json.loads((finished / "results.json").read_text())["manifest"]]
    kept.append(kdpl.bundle.read_bundle(finished).manifest)
    assert [content["digest"] for content in kept] == [manifest.digest] * 3
    assert manifest.digest in (finished / "MODEL_CARD.md").read_text()


names = st.lists(st.text(max_size=3), unique=True, min_size=2, max_size=5)


@given(names, st.permutations(range(5)), st.floats(0.1, 1), st.floats(0.1, 1))
def test_the_digest_follows_everything_and_the_recipe_everything_but_the_seed(classes, order, a, b):
    def manifest(seed=1, lr=a, images="1 (x)", classes=classes, shots=16):
        config = {"SEED": seed, "OPTIM.LR": lr, "DATASET.NUM_SHOTS": shots}
        return Manifest(config, {"class names": list(classes), "training images": images})

    one = manifest()
    assert one.digest == Manifest.from_dict(json.loads(json.dumps(one.to_dict()))).digest
    assert (manifest(lr=b).digest == one.digest) == (a == b) == (manifest(lr=b).recipe == one.recipe)
    assert manifest(2).digest != one.digest and manifest(2, images="2 (y)").recipe == one.recipe
    assert manifest(2, images="2 (y)", shots=-1).recipe != manifest(shots=-1).recipe, "no seed has drawn these"
    assert manifest(2, shots=-1).recipe == manifest(shots=-1).recipe
    assert manifest(images="2 (y)").digest != one.digest
    shuffled = [classes[i] for i in order if i < len(classes)]
    assert (manifest(classes=shuffled).digest == one.digest) == (shuffled == list(classes))


OTHER = {"TRAINER.KDPL.TEACHER": "emoji_student", "OPTIM.LR": 0.5}


@pytest.mark.slow
@pytest.mark.parametrize("key", OTHER)
def test_a_finished_folder_is_refused_under_other_settings_and_keeps_everything(key, finished):
    before = {
        p: p.read_bytes() for p in finished.rglob("*") if p.is_file() and "log" not in p.name and "tfevents" not in p.name
    }
    process = train(finished, key, OTHER[key])
    assert process.returncode == exits.BAD_INPUT
    assert f"  {key}: {read_manifest(finished).config[key]} in the folder, {OTHER[key]} now" in process.stderr
    assert "--fresh" in process.stderr and "Loading dataset" not in process.stdout
    assert {p: p.read_bytes() for p in before} == before


@pytest.mark.slow
def test_the_same_command_again_trains_nothing_and_passes(finished):
    (path,) = finished.rglob("model.pth.tar-2")
    before = path.read_bytes()
    process = train(finished, "DATALOADER.NUM_WORKERS", 1, "TRAIN.PRINT_FREQ", 1, "TRAINER.KDPL.MAX_TEXT_ROWS", 100)
    assert process.returncode == 0 and path.read_bytes() == before
    assert (
        "Note: TRAINER.KDPL.MAX_TEXT_ROWS: 8192 in the folder, 100 now; this moves results by rounding alone" in process.stdout
    )


@pytest.mark.slow
def test_images_whose_content_changed_are_another_run(tmp_path):
    """Same names, sizes and times of modification, other pixels."""
    data = tmp_path / "photos"
    for i in range(4):
        image_file(data / f"{i}.bmp", 64, i)
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    args = ["--root", data, "--seed", 1, "--trainer", "KDPL_CoOp", "--output-dir", tmp_path / "out", "--dataset-config-file",
            ROOT / "configs/datasets/image_folder.yaml", "--config-file", ROOT / "configs/trainers/KDPL_CoOp/emoji.yaml",
            "DATASET.CLASSNAMES", tmp_path / "names.txt", "OPTIM.MAX_EPOCH", 1, "DATALOADER.TRAIN_X.BATCH_SIZE", 4]  # fmt: skip
    cache = {"KDPL_CACHE": str(tmp_path / "cache")}
    run_train(*args, **cache)
    times = os.stat(data / "0.bmp")
    with open(data / "0.bmp", "r+b") as file:
        file.seek(100)
        file.write(b"\0\1\2\3")
    os.utime(data / "0.bmp", ns=(times.st_atime_ns, times.st_mtime_ns))
    process = run_train(*args, check=False, **cache)
    assert process.returncode == exits.BAD_INPUT, process.stderr
    assert "training images: 4 (" in process.stderr


@pytest.mark.slow
def test_a_run_starts_over_beside_what_was_there(tmp_path):
    train(tmp_path / "out", *UNTESTED, check=True)
    process = train(tmp_path / "out", "OPTIM.LR", 0.001, *UNTESTED, flags=["--fresh"])
    assert process.returncode == 0, process.stderr
    old = tmp_path / "out" / "before-1"
    assert (read_manifest(old).config["OPTIM.LR"], read_manifest(tmp_path / "out").config["OPTIM.LR"]) == (RATE, 0.001)
    assert (old / "prompts.safetensors").is_file()


@pytest.mark.slow
def test_prompts_are_evaluated_as_what_they_were_learned_as(finished, tmp_path):
    def evaluate(*options, trainer="KDPL_CoOp", flags=()):
        return train(tmp_path / "new", "DATASET.SUBSAMPLE_CLASSES", "new", *options, trainer=trainer,
                     flags=["--eval-only", "--model-dir", finished, *flags])  # fmt: skip

    assert evaluate().returncode == 0
    recorded = json.loads((tmp_path / "new" / "results.json").read_text())
    assert recorded["manifest"]["digest"] == read_manifest(finished).digest and recorded["results"][0]["classes"] == "new"
    for process, text in (
        (evaluate(trainer="CoOp"), "TRAINER.NAME: KDPL_CoOp in the folder, CoOp now"),
        (evaluate("TRAINER.COOP.CLASS_TOKEN_POSITION", "front"), "CLASS_TOKEN_POSITION: end in the folder, front now"),
        (
            evaluate("MODEL.BACKBONE.NAME", "emoji_teacher"),
            "MODEL.BACKBONE.NAME: emoji_student in the folder, emoji_teacher now",
        ),
    ):
        assert process.returncode == exits.BAD_INPUT and text in process.stderr, process.stderr


@pytest.mark.slow
def test_class_specific_contexts_stay_with_their_classes(tmp_path):
    csc = ("TRAINER.COOP.CSC", True, "OPTIM.MAX_EPOCH", 1, *UNTESTED)
    run = build("KDPL_CoOp", tmp_path / "a", *csc)
    run.train()
    other = build("KDPL_CoOp", tmp_path / "b", *csc)
    first, second, *_ = sorted(other.lab2cname)
    other.lab2cname[first], other.lab2cname[second] = other.lab2cname[second], other.lab2cname[first]
    with pytest.raises(OtherRunError, match="class names: label 0 is '"):
        other.load_model(str(tmp_path / "a"))
    same = build("KDPL_CoOp", tmp_path / "d", *csc)
    same.load_model(str(tmp_path / "a"))
    assert_same(parameters(same), parameters(run))
