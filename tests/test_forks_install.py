"""`python -m kdpl.install`: three changes to any `train.py`, made once, in its style, and taken out again."""

import ast
import os
import subprocess
import sys
import textwrap

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import ROOT

from kdpl import install
from kdpl.forks import edit

TRAIN = '''\
"""A fork's."""
from __future__ import annotations

import argparse
import datasets.oxford_pets
import datasets.dtd  # a comment
import trainers.coop


def extend_cfg(cfg):
    """
    Add new config variables.
    """
    from yacs.config import CfgNode as CN

    cfg.TRAINER.COOP = CN()
    cfg.TRAINER.COOP.CTX_INIT = False  # initialization words


def setup_cfg(args):
    cfg = get_cfg_default()
    extend_cfg(cfg)
    return cfg
'''


def changed(source):
    return edit.apply_changes(source, edit.missing_changes(source))


def test_the_three_changes_stand_where_the_documentation_says():
    lines = changed(TRAIN).splitlines()
    added = ("import kdpl.trainers", "import kdpl.datasets", "kdpl.extend_cfg(cfg)")
    at = {text: i for i, line in enumerate(lines) for text in added if line.strip().startswith(text)}
    assert lines[at["import kdpl.trainers"] + 1] in ("", "import argparse") and "__future__" in lines[1]
    assert at["import kdpl.trainers"] < lines.index("import argparse")
    assert lines[at["import kdpl.datasets"] - 1] == "import trainers.coop"
    assert lines[at["kdpl.extend_cfg(cfg)"] - 1].strip().startswith("cfg.TRAINER.COOP.CTX_INIT")
    assert lines[at["kdpl.extend_cfg(cfg)"]].startswith("    kdpl")


VARIANTS = {
    "windows": TRAIN.replace("\n", "\r\n"),
    "tabs": TRAIN.replace("    ", "\t"),
    "no_end": TRAIN.rstrip("\n"),
    "bom": "\ufeff" + TRAIN,
    "return": TRAIN.replace("  # initialization words\n", "\n    return cfg\n", 1),
    "other_name": TRAIN.replace("def extend_cfg(cfg)", "def extend_cfg(c)").replace("    cfg.TRAINER", "    c.TRAINER"),
    "no_function": TRAIN.replace("extend_cfg", "own_cfg"),
    "no_datasets": TRAIN.replace("import datasets.oxford_pets\nimport datasets.dtd  # a comment\n", ""),
    "from_datasets": TRAIN.replace("import datasets.dtd", "from datasets import dtd"),
    "one_line": TRAIN.replace(
        TRAIN[TRAIN.index("def extend") : TRAIN.index("def setup")], "def extend_cfg(cfg):\n    pass\n\n\n"
    ),
    "no_docstring": TRAIN.partition("\n")[2].partition("\n")[2].lstrip("\n"),
    "continued": TRAIN.replace("import trainers.coop", "from trainers import (\n    coop,\n)"),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_any_style_of_file_is_changed_once_and_restored(variant, tmp_path):
    source, path = VARIANTS[variant], tmp_path / "train.py"
    path.write_bytes(source.encode())
    before = edit.read_source(path)
    os.chmod(path, 0o755)
    edit.install(path)
    text = path.read_bytes().decode()
    ast.parse(text.removeprefix("\ufeff"))
    if variant == "return":
        assert text.index("kdpl.extend_cfg(cfg)") < text.index("    return cfg")
    after = edit.read_source(path)
    assert len(edit.missing_changes(before)) == 3 and not edit.missing_changes(after) and text.count(edit.MARK) == 3
    assert ("\r\n" in source) == ("\r\n" in text) and text.count("\r\n") in (0, text.count("\n"))
    assert path.stat().st_mode & 0o777 == 0o755
    assert edit.without_changes(text).rstrip("\n") == source.rstrip("\n")
    edit.install(path)
    assert path.read_bytes().decode() == text, "a second time changes nothing"
    assert "what it was before" in edit.undo(path)
    assert path.read_bytes() == source.encode() and list(tmp_path.iterdir()) == [path]
    assert "no line of kdpl.install" in edit.undo(path)


def test_changes_by_others_survive_the_undoing(tmp_path):
    path = tmp_path / "train.py"
    path.write_text(TRAIN)
    edit.install(path)
    path.write_text(path.read_text() + "\nprint('mine')\n")
    assert "other changes since" in edit.undo(path)
    assert path.read_text() == TRAIN + "\nprint('mine')\n"
    assert path.with_name("train.py.before-kdpl").read_text() == TRAIN


PARTS = [
    "import os", "x = 1", "# a comment", "", "import datasets.a", "if True:\n    import datasets.b", "'text'",
    "@decorated\ndef f():\n    pass", "class A:\n    pass", "from a import (b,\n    c)",
]  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(PARTS), max_size=8))
def test_whatever_stands_around_it_the_result_is_python_with_the_same_other_lines(parts):
    source = "\n".join([*parts, "def extend_cfg(cfg):", "    cfg.A = 1", ""])
    text = changed(source)
    ast.parse(text)
    assert not edit.missing_changes(text)
    assert edit.without_changes(text) == source


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "There is no"),
        (b"print 'python 2'\n", "is not Python that this version reads"),
        (b"\xff\xfe\x00", "cannot be read as Python"),
        (b"import os\n", "neither a function extend_cfg"),
    ],
)
def test_a_file_without_a_place_for_the_changes_is_refused_and_left_alone(content, message, tmp_path, capsys):
    path = tmp_path / "train.py"
    if content is not None:
        path.write_bytes(content)
    assert install.main([str(tmp_path)]) == 2
    assert message in capsys.readouterr().err
    assert content is None or path.read_bytes() == content


def test_a_dry_run_shows_the_changes_and_makes_none(tmp_path, capsys):
    (tmp_path / "train.py").write_text(TRAIN)
    assert install.main([str(tmp_path), "--dry-run"]) == 0
    assert capsys.readouterr().out.count("train.py, behind line") == 3
    assert (tmp_path / "train.py").read_text() == TRAIN


# -------------------------------------------------------------------------------------------------------- a whole fork


def run(*args, cwd):
    process = subprocess.run(
        [sys.executable, *map(str, args)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    return process.returncode, process.stdout + process.stderr


@pytest.fixture
def fork(tmp_path):
    """A small fork: its own train.py, a `trainers` folder of our style trainers, a default of another type."""
    folder = tmp_path / "fork"
    (folder / "trainers").mkdir(parents=True)
    (folder / "trainers" / "__init__.py").write_text("")
    (folder / "trainers" / "styles.py").write_text((ROOT / "tests" / "fork_styles.py").read_text())
    (folder / "train.py").write_text(
        textwrap.dedent(
            """\
            import argparse

            from dassl.utils import set_random_seed, setup_logger
            from dassl.config import get_cfg_default
            from dassl.engine import build_trainer
            import trainers.styles


            def extend_cfg(cfg):
                from yacs.config import CfgNode as CN

                cfg.TRAINER.COOP = CN()
                cfg.TRAINER.COOP.N_CTX = 16
                cfg.TRAINER.COOP.CSC = False
                cfg.TRAINER.COOP.CTX_INIT = False
                cfg.TRAINER.COOP.PREC = "fp16"
                cfg.TRAINER.COOP.CLASS_TOKEN_POSITION = "end"
                cfg.TRAIN.CHECKPOINT_FREQ = -1


            def main():
                parser = argparse.ArgumentParser()
                for name in ("trainer", "output-dir", "config-file", "dataset-config-file"):
                    parser.add_argument(f"--{name}", default="")
                parser.add_argument("--seed", type=int, default=-1)
                parser.add_argument("opts", nargs=argparse.REMAINDER)
                args = parser.parse_args()
                cfg = get_cfg_default()
                extend_cfg(cfg)
                for file in (args.dataset_config_file, args.config_file):
                    cfg.merge_from_file(file)
                cfg.TRAINER.NAME, cfg.SEED, cfg.OUTPUT_DIR = args.trainer, args.seed, args.output_dir
                cfg.merge_from_list(args.opts)
                cfg.freeze()
                set_random_seed(cfg.SEED)
                setup_logger(cfg.OUTPUT_DIR)
                build_trainer(cfg).train()


            if __name__ == "__main__":
                main()
            """
        )
    )
    return folder


def command(trainer, output):
    return ["train.py", "--trainer", trainer, "--seed", 1, "--output-dir", output,
            "--config-file", ROOT / "configs/trainers/KDPL_CoOp/emoji.yaml",
            "--dataset-config-file", ROOT / "configs/datasets/emoji_food.yaml",
            "DATASET.NUM_SHOTS", 1, "DATASET.SUBSAMPLE_CLASSES", "base", "OPTIM.MAX_EPOCH", 1,
            "TEST.NO_TEST", True]  # fmt: skip


@pytest.mark.slow
def test_installed_kdpls_and_the_forks_own_wrapped_trainer_work_in_its_train_py(fork, tmp_path, capsys):
    """A fork whose defaults are CTX_INIT False and CHECKPOINT_FREQ -1, under its own `merge_from_file`."""
    assert install.main([str(fork), "--trainer", "StyleProbe"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("train.py, behind line") == 3 and "mended: TRAINER.COOP.CTX_INIT" in printed
    assert "KDPL_CoOp: trained, prompts written" in printed and "KDPL_StyleCoOp, KDPL_StyleAmp" in printed
    assert "KDPL_StyleProbe: 10 steps without labels, 3 of 3 learned parameters moved" in printed
    status, printed = run(*command("KDPL_StyleCoOp", tmp_path / "a"), cwd=fork)
    assert status == 0, printed[-3000:]
    assert "KDPL in StyleCoOp: replaced by the divergence" in printed
    assert [p.name for p in sorted((tmp_path / "a" / "prompt_learner").iterdir())] == ["checkpoint", "model.pth.tar-1"]


@pytest.mark.parametrize(("kind", "name", "order"), [("data set", "OxfordPets", "datasets"), ("trainer", "CoOp", "trainers")])
def test_a_forks_class_that_comes_after_kdpls_of_the_same_name_is_an_error_that_names_the_order(kind, name, order):
    """The other order is in tests/test_registry.py; here nothing is mixed: the registry is as it was."""
    import kdpl.datasets
    import kdpl.trainers.baselines  # noqa: F401

    # isort: split
    from dassl.data.datasets import DATASET_REGISTRY
    from dassl.engine import TRAINER_REGISTRY

    registry = DATASET_REGISTRY if kind == "data set" else TRAINER_REGISTRY
    ours = registry.get(name)
    theirs = type(name, (), {"__module__": f"{order}.fork"})
    with pytest.raises(ImportError, match=rf"^{name} of {order}\.fork comes after KDPL's.*: .*Import kdpl\.{order}.* after"):
        registry.register(theirs)
    with pytest.raises(ImportError, match="comes after"):
        registry.register()(theirs)
    assert registry.get(name) is ours
