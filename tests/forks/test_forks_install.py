"""`python -m kdpl.install`: three changes to any `train.py`, made once, in its style, and taken out to the byte."""

import ast
import os
import sys
import time

import pytest
from support import ROOT, processes

from kdpl import install

TRAIN = '''\
"""A fork's."""
from __future__ import annotations

import argparse

from dassl.utils import load_checkpoint, set_random_seed, setup_logger
from dassl.config import get_cfg_default
from dassl.engine import build_trainer
import trainers.styles  # a comment


def extend_cfg(cfg):
    """
    Add new config variables.
    """
    from yacs.config import CfgNode as CN

    cfg.TRAINER.COOP = CN()
    cfg.TRAINER.COOP.N_CTX = 16
    cfg.TRAINER.COOP.CSC = False
    cfg.TRAINER.COOP.CTX_INIT = False
    cfg.TRAINER.COOP.PREC = "fp16"
    cfg.TRAINER.COOP.CLASS_TOKEN_POSITION = ""
    cfg.TRAIN.CHECKPOINT_FREQ = -1


def main():
    parser = argparse.ArgumentParser()
    for name in ("trainer", "output-dir", "config-file", "dataset-config-file", "model-dir"):
        parser.add_argument(f"--{name}", default="")
    parser.add_argument("--seed", type=int, default=-1)
    parser.add_argument("--eval-only", action="store_true")
    parser.add_argument("opts", nargs=argparse.REMAINDER)
    args = parser.parse_args()
    cfg = get_cfg_default()
    extend_cfg(cfg)
    if args.trainer != "KDPL_CoOp":
        cfg.merge_from_list({"StyleCoOp": ["OPTIM.LR", 0.5]}[args.trainer])
    for file in (args.dataset_config_file, args.config_file):
        cfg.merge_from_file(file)
    cfg.TRAINER.NAME, cfg.SEED, cfg.OUTPUT_DIR = args.trainer, args.seed, args.output_dir
    cfg.merge_from_list(args.opts)
    cfg.OPTIM.MAX_EPOCH = 1
    cfg.freeze()
    set_random_seed(cfg.SEED)
    setup_logger(cfg.OUTPUT_DIR)
    trainer = build_trainer(cfg)
    if args.eval_only:
        for name, model in trainer._models.items():  # Dassl's own load_model takes no checkpoint without a validation result
            model.load_state_dict(load_checkpoint(f"{args.model_dir}/{name}/model.pth.tar-1")["state_dict"])
        trainer.test()
    else:
        trainer.train()


if __name__ == "__main__":
    main()
'''


def test_the_three_changes_stand_where_the_documentation_says():
    lines = install.apply_changes(TRAIN.encode(), install.missing_changes(TRAIN.encode())).decode().splitlines()
    added = ("import kdpl.trainers", "kdpl.trainers.offer_distilled()", "kdpl.extend_cfg(cfg)")
    at = {text: i for i, line in enumerate(lines) for text in added if line.strip().startswith(text)}
    assert lines[at["import kdpl.trainers"] + 1] == "import argparse" and "__future__" in lines[1]
    assert lines[at["kdpl.trainers.offer_distilled()"] - 1].startswith("import trainers.styles")
    assert lines[at["kdpl.extend_cfg(cfg)"] - 1] == "    extend_cfg(cfg)"
    assert lines[at["kdpl.extend_cfg(cfg)"]].startswith("    kdpl")


VARIANTS = {
    "windows": TRAIN.replace("\n", "\r\n").encode(),
    "tabs": TRAIN.replace("    ", "\t").encode(),
    "bom": b"\xef\xbb\xbf" + TRAIN.rstrip("\n").encode(),
    "return": TRAIN.replace("    extend_cfg(cfg)", "    cfg = extend_cfg(cfg)").encode(),
    "no_function": TRAIN.replace("extend_cfg", "own_cfg").encode(),
    "continued": TRAIN.replace("import trainers.styles", "from trainers import (\n    styles,\n)").encode(),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_any_style_of_file_is_changed_once_and_restored_to_the_byte(variant, tmp_path, capsys):
    content, path = VARIANTS[variant], tmp_path / "train.py"
    path.write_bytes(content)
    os.chmod(path, 0o755)
    for _ in range(2):
        assert install.main([str(tmp_path)]) == 0
        text = path.read_bytes()
        ast.parse(text)
        assert text.count(install.MARK.encode()) == 3 and not install.missing_changes(path.read_bytes())
    assert path.stat().st_mode & 0o777 == 0o755 and "has all three changes" in capsys.readouterr().out
    assert install.main([str(tmp_path), "--undo"]) == 0
    assert path.read_bytes() == content and path.stat().st_mode & 0o777 == 0o755 and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "train.py': No such file"),
        (b"print 'python 2'\n", "train.py, line 1)"),
        (b"import os\n", "calls neither extend_cfg(cfg) nor get_cfg_default()"),
    ],
)
def test_a_file_without_a_place_for_the_changes_is_refused_and_left_alone(content, message, tmp_path, capsys):
    path = tmp_path / "train.py"
    if content is not None:
        path.write_bytes(content)
    assert install.main([str(tmp_path)]) == 2
    assert message in capsys.readouterr().err
    assert content is None or path.read_bytes() == content


# -------------------------------------------------------------------------------------------------------- a whole fork


@pytest.fixture
def fork(tmp_path):
    """A small fork: its own train.py, a default of another type, a `trainers` folder of our style trainers.

    That folder has no __init__.py, and the trainer's options are looked up by `args.trainer`, as in forks that we have seen.
    """
    folder = tmp_path / "fork"
    (folder / "trainers").mkdir(parents=True)
    text = (ROOT / "tests/support/fork_styles.py").read_text()
    text += "\n\n@TRAINER_REGISTRY.register()\nclass NoStep(TrainerX):\n    pass\n"
    (folder / "trainers" / "styles.py").write_text(text)
    (folder / "train.py").write_text(TRAIN)
    return folder


def test_the_forks_trainers_and_what_is_not_installed_are_named_in_a_second(fork, capsys):
    styles = fork / "trainers" / "styles.py"
    styles.write_text(f"import cv2\nimport ot_that_nobody_has.x as x\n{styles.read_text()}")
    begin = time.perf_counter()
    assert install.main([str(fork)]) == 0
    assert time.perf_counter() - begin < 2
    printed = capsys.readouterr().out
    assert "pip install " in printed and "ot_that_nobody_has" in printed
    assert "--trainer KDPL_StyleCoOp, KDPL_StyleProbe, KDPL_StyleMixup" in printed
    assert "Not NoStep: without a forward_backward(batch)" in printed


def command(trainer, output, *more):
    return ["train.py", "--trainer", trainer, "--seed", 1, "--output-dir", output, *more,
            "--config-file", ROOT / "configs/trainers/KDPL_CoOp/emoji.yaml",
            "--dataset-config-file", ROOT / "configs/datasets/emoji_meals.yaml",
            "DATASET.NUM_SHOTS", 1, "DATASET.SUBSAMPLE_CLASSES", "base", "OPTIM.MAX_EPOCH", 9]  # fmt: skip


def run(*args, cwd):
    said = {"capture_output": True, "text": True, "timeout": 500}
    process = processes.run([sys.executable, *map(str, args)], cwd=cwd, check=False, **said)
    return process.returncode, process.stdout + process.stderr


@pytest.mark.slow
def test_installed_kdpls_and_the_forks_own_trainer_work_by_its_own_command(fork, tmp_path):
    assert install.main([str(fork)]) == 0
    status, printed = run(*command("KDPL_StyleCoOp", tmp_path / "a"), cwd=fork)
    assert status == 0, printed[-3000:]
    assert "KDPL_StyleCoOp: StyleCoOp of trainers.styles without labels; its code reads --trainer StyleCoOp" in printed
    assert "labels were used for 1 x cross-entropy: the divergence; 1 x eq" in printed
    assert "OPTIM.MAX_EPOCH is 1, which train.py sets itself, not 9 of the command line" in printed
    assert [p.name for p in sorted((tmp_path / "a" / "prompt_learner").iterdir())] == ["checkpoint", "model.pth.tar-1"]
    again = command("KDPL_StyleCoOp", tmp_path / "b", "--eval-only", "--model-dir", tmp_path / "a")
    status, evaluated = run(*again, cwd=fork)
    accuracy = next(line for line in printed.splitlines() if line.startswith("* accuracy"))
    assert status == 0 and accuracy in evaluated and "teacher has labelled" not in evaluated, evaluated[-3000:]
    status, printed = run(*command("KDPL_NoStep", tmp_path / "c"), cwd=fork)
    assert status == 1 and printed.splitlines()[-1].startswith("--trainer KDPL_NoStep: NoStep cannot learn without labels")
    status, printed = run(*command("KDPL_CoOp", tmp_path / "d"), cwd=fork)  # with a default CLASS_TOKEN_POSITION ''
    assert status == 0 and (tmp_path / "d" / "prompts.safetensors").is_file(), printed[-3000:]
