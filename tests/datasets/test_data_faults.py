"""Odd images, odd numbers of them and odd class names end in the right result or in an error that names them."""

import json
import multiprocessing
import sys
from pathlib import Path

import pytest
from dassl.data.datasets import DATASET_REGISTRY, Datum
from support import ROOT, config, emoji_args, image_file, processes

from kdpl import train
from kdpl.common import exits
from kdpl.datasets.base import ClassListDataset, fewshot


@DATASET_REGISTRY.register()
class FewPhotos(ClassListDataset):
    """Images ROOT/LABEL/*.png of the class names in ROOT/names.json; what is trained on is tested on."""

    def __init__(self, cfg):
        root = Path(cfg.DATASET.ROOT)
        names = dict(enumerate(json.loads((root / "names.json").read_text())))
        images = [Datum(str(p), int(p.parent.name), classname=names[int(p.parent.name)]) for p in sorted(root.glob("*/*.png"))]
        drawn, _ = fewshot(self, images, [], cfg.DATASET.NUM_SHOTS, cfg.SEED)
        super().__init__(names, train_x=drawn, val=None, test=images)


def photos(root, names, counts):
    for label, count in enumerate(counts):
        for i in range(count):
            image_file(root / f"{label}/{i}.png", seed=100 * label + i)
    root.mkdir(exist_ok=True)
    (root / "names.json").write_text(json.dumps(names))
    return root


def build(root, output, *options, trainer="KDPL_CoOp"):
    from dassl.engine import build_trainer

    learner = "KDPL_CoOp" if trainer.startswith("Zeroshot") else trainer
    names = ("DATASET.NAME", "FewPhotos", "DATASET.ROOT", root, "SEED", 1, "TRAINER.NAME", trainer)
    return build_trainer(config(learner, "", output, *names, "OPTIM.MAX_EPOCH", 2, *options))


def results(output):
    (result,) = json.loads((output / "results.json").read_text())["results"]
    return result


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_ends_the_run_with_its_path(workers, tmp_path, capsys):
    root = photos(tmp_path / "photos", ["fox", "owl"], [3, 3])
    path = root / "1/2.png"
    path.write_bytes(path.read_bytes()[:2000])
    options = ["DATASET.NAME", "FewPhotos", "DATASET.ROOT", str(root), "DATALOADER.NUM_WORKERS", str(workers)]
    assert train.main([*emoji_args("KDPL_CoOp", tmp_path / "out"), *options]) == exits.FAILED
    error = capsys.readouterr().err
    assert f"error: '{path}' cannot be read as an image" in error and "Extract or download it again" in error
    assert "Traceback" not in error
    assert not multiprocessing.active_children(), "a loader's workers outlive the epoch that failed"


@pytest.mark.slow
def test_an_image_that_vanishes_during_training_is_named(tmp_path):
    root = photos(tmp_path / "photos", ["fox", "owl"], [3, 3])
    run = build(root, tmp_path / "out")
    finish = run.after_epoch

    def remove_one():
        finish()
        (root / "0/1.png").unlink()

    run.after_epoch = remove_one
    with pytest.raises(FileNotFoundError, match=rf"No image at '{root}/0/1.png'. Check DATASET.ROOT"):
        run.train()
    assert run.finished_epochs == 1


@pytest.mark.slow
def test_workers_that_leave_signals_to_the_parent_end_with_it():
    """An error may hold on to a loader until the process ends."""
    program = (
        "from torch.utils.data import DataLoader\n"
        "from kdpl.common.command import leave_signals_to_the_parent\n"
        "from torch.utils.data._utils import worker\n"
        "worker.MP_STATUS_CHECK_INTERVAL = 0.2  # seconds\n"
        "loaded = iter(DataLoader(range(9), num_workers=1, worker_init_fn=leave_signals_to_the_parent))\n"
        "print(next(loaded))\n"
        "import sys; sys.last_value = loaded\n"
        "loaded.__class__.__del__ = lambda self: None\n"
    )
    process = processes.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, cwd=ROOT, check=False)
    assert (process.returncode, process.stdout) == (0, "tensor([0])\n"), process.stderr


@pytest.mark.slow
def test_classes_with_fewer_images_than_shots_give_all_they_have(tmp_path):
    root = photos(tmp_path / "photos", ["fox", "owl", "ant"], [1, 5, 2])
    run = build(root, tmp_path / "out", "DATASET.NUM_SHOTS", 2)
    assert sorted(item.label for item in run.dm.dataset.train_x) == [0, 1, 1, 2, 2]
    run.train()
    assert (results(tmp_path / "out")["num_images"], run.finished_epochs) == (8, 2)
