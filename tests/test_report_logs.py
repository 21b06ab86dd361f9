"""Results of runs that left no results.json: the report reads the log.txt of Dassl and its forks."""

from pathlib import Path

import pytest

from kdpl.experiments.report.logs import read_logs
from kdpl.experiments.report.runs import Data, read_scores
from kdpl.report import main
from kdpl.training.results import write_results

CONFIG = """\
***************
** Arguments **
***************
backbone: 
config_file: configs/trainers/{trainer}/vit_b32_ep50_ctxv1.yaml
dataset_config_file: configs/datasets/oxford_pets.yaml
eval_only: {eval_only}
head: 
load_epoch: {load_epoch}
model_dir: {model_dir}
no_train: False
opts: ['DATASET.NUM_SHOTS', '{shots}', 'DATASET.SUBSAMPLE_CLASSES', '{classes}']
output_dir: {output_dir}
resume: 
root: /data
seed: {seed}
source_domains: None
target_domains: None
trainer: {trainer}
transforms: None
************
** Config **
************
DATALOADER:
  NUM_WORKERS: 8
  TEST:
    BATCH_SIZE: 100
    SAMPLER: SequentialSampler
DATASET:
  ALL_AS_UNLABELED: False
  NAME: {dataset}
  NUM_SHOTS: {shots}
  ROOT: /data
  SOURCE_DOMAINS: ()
  SUBSAMPLE_CLASSES: {classes}
  TARGET_DOMAINS: ()
INPUT:
  PIXEL_MEAN: [0.48145466, 0.4578275, 0.40821073]
  SIZE: (224, 224)
MODEL:
  BACKBONE:
    NAME: ViT-B/32
    PRETRAINED: True
OPTIM:
  MAX_EPOCH: 50
OUTPUT_DIR: {output_dir}
SEED: {seed}
TEST:
  SPLIT: test
TRAINER:
  COOP:
    CTX_INIT: 
    N_CTX: 4
    PREC: fp16
{kdpl}  NAME: {trainer}
USE_CUDA: True
Collecting env info ...
** System info **
PyTorch version: 1.8.1
Loading dataset: {dataset}
"""  # noqa: W291 - an empty value leaves a space behind the colon

KDPL_NODE = "  KDPL:\n    CLASS_AGNOSTIC: {agnostic}\n    TEACHER: ViT-H-14-quickgelu\n"

TRAINING = """\
epoch [50/50] batch [5/18] time 0.110 (0.180) data 0.000 (0.062) loss 0.4226 (0.5310) lr 1.9733e-06 eta 0:00:02
Checkpoint saved to output/prompt_learner/model.pth.tar-50
Finish training
Deploy the last-epoch model
"""

RESULT = """\
Evaluate on the *test* set
=> result
* total: 1,881
* correct: 1,751
* accuracy: {accuracy}%
* error: {error:.1f}%
* macro_f1: {accuracy}%
"""


def write_log(
    root: Path,
    folder: str,
    accuracy: float | None,
    *,
    trainer: str = "CoOp",
    dataset: str = "OxfordPets",
    classes: str = "base",
    seed: int = 1,
    shots: int = 16,
    model_dir: str = "",
    agnostic: bool = False,
    finished: bool = True,
    name: str = "log.txt",
) -> Path:
    folder = root / folder
    folder.mkdir(parents=True, exist_ok=True)
    text = CONFIG.format(
        trainer=trainer,
        dataset=dataset,
        classes=classes,
        seed=seed,
        shots=shots,
        model_dir=model_dir,
        eval_only=bool(model_dir),
        load_epoch=50 if model_dir else None,
        output_dir=folder.relative_to(root),
        kdpl=KDPL_NODE.format(agnostic=agnostic) if "KDPL" in trainer else "",
    )
    if not model_dir and finished:
        text += TRAINING
    if accuracy is not None:
        text += RESULT.format(accuracy=accuracy, error=100 - accuracy)
    (folder / name).write_text(text)
    return folder


def test_arguments_configuration_and_result_of_a_log(tmp_path):
    log = read_logs(write_log(tmp_path, "output/x/seed1", 93.1))
    assert log.arguments["config_file"] == "configs/trainers/CoOp/vit_b32_ep50_ctxv1.yaml"
    assert log.config["DATASET.NAME"] == "OxfordPets"
    assert log.config["MODEL.BACKBONE.NAME"] == "ViT-B/32"
    assert log.config["TRAINER.NAME"] == "CoOp"
    assert log.config["SEED"] == "1"
    assert "PyTorch version" not in " ".join(log.config)
    assert log.accuracies == {"test": 93.1}


def test_tests_during_training_are_not_results(tmp_path):
    assert read_logs(write_log(tmp_path, "x", 93.1, finished=False)).accuracies == {}
    assert main([str(tmp_path)]) == 2


def test_a_run_that_went_on_in_a_second_log_has_the_result_of_that(tmp_path):
    write_log(tmp_path, "x", 50.0, finished=False)
    write_log(tmp_path, "x", 93.1, name="log.txt-2026-01-01-00-00-00")
    (score,) = read_scores([tmp_path])[0]
    assert score.accuracy == 93.1


def test_base_to_new_of_the_forks_layout(tmp_path, capsys):
    for trainer, base, new in (("CoOp", 93.0, 95.0), ("CoOp_KDPL", 92.0, 97.0)):
        common = f"oxford_pets/shots_16/{trainer}/vit_b32_ep50_ctxv1/seed1"
        trained = f"output/base2new/train_base/{common}"
        write_log(tmp_path, trained, base, trainer=trainer)
        write_log(tmp_path, f"output/base2new/test_new/{common}", new, trainer=trainer, classes="new", model_dir=trained)
    assert main([str(tmp_path / "output")]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["OxfordPets", "CoOp", "93.00", "95.00", "93.99"] in lines
    assert ["KDPL_CoOp", "92.00", "97.00", "94.43"] in lines
    assert ["minus", "CoOp", "-1.00", "+2.00", "+0.44"] in lines


def test_cross_dataset_of_the_forks_layout_knows_its_source_from_the_training_run(tmp_path):
    trained = "output/imagenet/CoOp/vit_b32_ep50_ctxv1_16shots/seed1"
    write_log(tmp_path, trained, 66.0, dataset="ImageNet", classes="all")
    write_log(
        tmp_path,
        "output/evaluation/CoOp/vit_b32_ep50_ctxv1_16shots/oxford_pets/seed1",
        88.0,
        classes="all",
        shots=-1,
        model_dir=trained,
    )
    scores = {str(score.tested): score for score in read_scores([tmp_path])[0]}
    assert scores["OxfordPets"].trained == Data("ImageNet")
    assert (scores["OxfordPets"].shots, scores["OxfordPets"].method) == (16, scores["ImageNet"].method)


@pytest.mark.parametrize(
    ("folder", "model_dir"),
    [
        ("output/evaluation/CoOp/vit_b32_ep50_ctxv1_16shots/oxford_pets/seed1", "output/gone/seed1"),
        ("output/cross_domain_and_datasets/test/oxford_pets/shots_16/CoOp/vit_b32_ep50_ctxv1/seed1", "gone"),
        ("elsewhere/shots_16/seed1", "output/cross_domain_and_datasets/train_imagenet/CoOp/x_16shots/seed1"),
    ],
)
def test_without_the_training_run_the_folders_tell_the_source(tmp_path, folder, model_dir):
    write_log(tmp_path, folder, 88.0, classes="all", shots=-1, model_dir=model_dir)
    (score,) = read_scores([tmp_path])[0]
    assert score.trained == Data("ImageNet")
    assert score.shots == 16


def test_class_agnostic_runs_are_told_by_their_configuration(tmp_path):
    write_log(tmp_path, "x/seed1", 90.0, trainer="CoOp_KDPL", agnostic=True)
    assert read_scores([tmp_path])[0][0].method.name == "KDPL_CoOp-CA"


def test_results_json_counts_before_the_log_beside_it_unless_damaged(tmp_path, capsys):
    folder = write_log(tmp_path, "output/x/seed1", 93.1)
    run = {"trainer": "CoOp", "backbone": "ViT-B/32", "seed": 1, "shots": 16}
    result: dict = {"source_domains": [], "target_domains": []}
    result |= {"dataset": "OxfordPets", "split": "test", "classes": "base", "num_classes": 19, "num_images": 1881}
    result |= {"accuracy": 93.0888, "error_rate": 6.9112, "macro_f1": 93.0}
    path = write_results(folder, run, result)
    assert read_scores([tmp_path])[0][0].accuracy == 93.0888
    path.write_text("{")
    assert main([str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert "93.10" in out
    assert "Until then the log is used" in err
