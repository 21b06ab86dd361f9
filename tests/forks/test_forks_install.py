"""`python -m kdpl.install`: three changes to any `train.py`, made once, in its style, and taken out again."""

import ast
import os
import re
import subprocess
import sys
import textwrap
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import ROOT, processes

from kdpl import install
from kdpl.forks import edit, report, start
from kdpl.forks.start import place, way_out

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
    added = ("import kdpl.trainers", "kdpl.trainers.offer_distilled()", "kdpl.extend_cfg(cfg)")
    at = {text: i for i, line in enumerate(lines) for text in added if line.strip().startswith(text)}
    assert lines[at["import kdpl.trainers"] + 1] in ("", "import argparse") and "__future__" in lines[1]
    assert at["import kdpl.trainers"] < lines.index("import argparse")
    assert lines[at["kdpl.trainers.offer_distilled()"] - 1] == "import trainers.coop"
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
    command = [sys.executable, "-c", start._BOOT, *map(str, args)]
    process = processes.run(command, cwd=cwd, capture_output=True, text=True, timeout=500, check=False)
    return process.returncode, process.stdout + process.stderr


@pytest.fixture
def fork(tmp_path):
    """A small fork: its own train.py, a default of another type, a `trainers` folder of our style trainers.

    That folder has no __init__.py, and the trainer's options are looked up by `args.trainer`, as in forks that we have seen.
    """
    folder = tmp_path / "fork"
    (folder / "trainers").mkdir(parents=True)
    (folder / "trainers" / "styles.py").write_text((ROOT / "tests" / "fork_styles.py").read_text())
    (folder / "train.py").write_text(
        textwrap.dedent(
            """\
            import argparse
            import os
            import sys

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
                if args.trainer != "KDPL_CoOp":
                    cfg.merge_from_list({"StyleCoOp": ["OPTIM.LR", 0.5], "StyleProbe": []}[args.trainer])
                for file in (args.dataset_config_file, args.config_file):
                    cfg.merge_from_file(file)
                cfg.TRAINER.NAME, cfg.SEED, cfg.OUTPUT_DIR = args.trainer, args.seed, args.output_dir
                cfg.merge_from_list(args.opts)
                cfg.freeze()
                set_random_seed(cfg.SEED)
                setup_logger(cfg.OUTPUT_DIR)
                breakpoint() if args.trainer == "StyleProbe" else None  # as somebody left it there
                trainer = build_trainer(cfg)
                if args.trainer == "StyleProbe":
                    trainer.test = leave
                trainer.train()


            def leave():
                sys.stdout.close()
                os._exit(0)


            if __name__ == "__main__":
                main()
            """
        )
    )
    return folder


def command(trainer, output):
    return ["train.py", "--trainer", trainer, "--seed", 1, "--output-dir", output,
            "--config-file", ROOT / "configs/trainers/KDPL_CoOp/emoji.yaml",
            "--dataset-config-file", ROOT / "configs/datasets/emoji_meals.yaml",
            "DATASET.NUM_SHOTS", 1, "DATASET.SUBSAMPLE_CLASSES", "base", "OPTIM.MAX_EPOCH", 1,
            "TEST.NO_TEST", True]  # fmt: skip


@pytest.mark.slow
def test_installed_kdpls_and_the_forks_own_wrapped_trainer_work_in_its_train_py(fork, tmp_path, capsys, monkeypatch):
    """A fork whose defaults are CTX_INIT False and CHECKPOINT_FREQ -1, under its own `merge_from_file`.

    PyTorch is imported already in its five processes, and nothing of KDPL.
    """
    monkeypatch.setattr(start, "subprocess", SimpleNamespace(run=processes.run, TimeoutExpired=subprocess.TimeoutExpired))
    assert install.main([str(fork), "--trainer", "StyleProbe"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("train.py, behind line") == 3 and "mended: TRAINER.COOP.CTX_INIT" in printed
    assert "KDPL_CoOp: trained, prompts written" in printed
    assert "--trainer takes, without labels: KDPL_StyleCoOp, KDPL_StyleAmp" in printed and "KDPL_StyleViews" in printed
    assert "note KDPL_StyleProbe: refused. The trainer reads labels by __getitem__" in printed
    assert "tried again with TRAINER.KDPL.ALLOW lookups" in printed
    worked = "KDPL_StyleProbe with TRAINER.KDPL.ALLOW lookups: 10 steps without labels, 3 of 3 learned parameters moved"
    exact = re.search(
        rf"ok +{worked}; loss and gradient are the formula's to (\S+)\n +python train.py --trainer KDPL_Style", printed
    )
    assert float(exact[1]) < 1e-6
    measures = [word for name in ("double", "exact") for word in load_run().MEASURES[name]]
    found = start.trial(fork, "--trainer", "StyleProbe", *measures, "--set", "TRAINER.KDPL.ALLOW", "lookups")
    assert found["gradient_of_parameters_differs"] < 1e-12 and len(found["digest"]) == 64, found
    status, printed = run(*command("KDPL_StyleCoOp", tmp_path / "a"), cwd=fork)
    assert status == 0, printed[-3000:]
    assert "KDPL_StyleCoOp: StyleCoOp of trainers.styles without labels; its code reads --trainer StyleCoOp" in printed
    assert "KDPL in StyleCoOp: replaced by the divergence" in printed
    assert [p.name for p in sorted((tmp_path / "a" / "prompt_learner").iterdir())] == ["checkpoint", "model.pth.tar-1"]


# ------------------------------------------------------------------------------------------- what stops a fork, and where


def in_fork(tmp_path, text, **files):
    """Run a `train.py` with this text, as a trial does, and return what is said of its error."""
    for name, content in {"train.py": text, "requirements.txt": "ftfy\nlearn2learn==0.2.0\n", **files}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    return start.run_python(tmp_path, "train.py")


def test_an_error_is_told_with_the_forks_line_and_the_package_that_is_missing(tmp_path):
    found = in_fork(tmp_path, "import learners.meta\n", **{"learners/meta.py": "\nimport learn2learn.utils as l2l\n"})
    assert found["error"] == "ModuleNotFoundError: No module named 'learn2learn'"
    assert found["where"] == f"{tmp_path}/learners/meta.py, line 2: import learn2learn.utils as l2l"
    assert found["way_out"] == "pip install 'learn2learn==0.2.0', which the fork needs"


def test_of_errors_raised_for_another_the_first_is_told(tmp_path):
    """DePT's train.py ends every run that fails with an Exception of its own."""
    body = "try:\n    open('a.pt')\nexcept:\n    raise Exception('Training task does not run!')\n"
    found = in_fork(tmp_path, body)
    assert found["error"] == "FileNotFoundError: [Errno 2] No such file or directory: 'a.pt'"
    assert found["where"] == f"{tmp_path}/train.py, line 2: open('a.pt')" and "README" in found["way_out"]


def test_the_line_of_an_error_is_that_of_the_changed_file(tmp_path, monkeypatch):
    import traceback

    from kdpl.forks import trial

    (tmp_path / "train.py").write_text(
        "from dassl.config import get_cfg_default\n\ncfg = get_cfg_default()\nraise ValueError(cfg.A)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "a_fork", raising=False)
    with pytest.raises(AttributeError) as error:
        trial.run_script("a_fork")
    said = "".join(traceback.format_exception(error.value))
    assert place(said, tmp_path)[0] == f"{tmp_path}/train.py, line 7: raise ValueError(cfg.A)"
    unseen = 'Traceback:\n  File "train.py", line 9, in main\n  File "/elsewhere/a.py", line 1, in f\nValueError: no\n'
    assert place(unseen, tmp_path) == (f"{tmp_path}/train.py, line 9: ", False)


def test_a_fork_that_ends_without_an_error_of_python_gives_its_status_or_last_words(tmp_path):
    assert in_fork(tmp_path, "import os; os._exit(7)\n") == {
        "error": "exit status 7",
        "where": "",
        "own": False,
        "way_out": "",
    }
    assert in_fork(tmp_path, "import sys; sys.exit('no data')\n")["error"] == "no data"
    killed = in_fork(tmp_path, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)\n")
    assert killed["error"] == "ended by signal 9, as if memory ran out"
    assert "error" not in in_fork(tmp_path, "print('done')\n")


def test_a_folder_of_pythonpath_is_found_from_the_forks_folder_too(tmp_path, monkeypatch):
    (tmp_path / "beside").mkdir()
    (tmp_path / "beside" / "beside_the_fork.py").write_text("")
    (tmp_path / "fork").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", "beside")
    assert "error" not in in_fork(tmp_path / "fork", "import beside_the_fork, kdpl\n")


def test_what_dassl_lacks_is_looked_for_in_a_dassl_beside_the_fork(tmp_path):
    lacks = "AttributeError: 'KDPL_ProGrad' object has no attribute 'prograd_backward_and_update'"
    fork = tmp_path / "ProGrad"
    fork.mkdir()
    assert "the bundled engine has no prograd_backward_and_update" in way_out(lacks, "", fork, bundled=True)
    assert "the installed Dassl has no prograd_backward_and_update" in way_out(lacks, "", fork, bundled=False)
    for folder, code in (("A.Dassl", "def other(): ...\n"), ("Dassl.ProGrad", "def prograd_backward_and_update(self): ...\n")):
        (tmp_path / folder / "dassl" / "engine").mkdir(parents=True)
        (tmp_path / folder / "dassl" / "__init__.py").touch()
        (tmp_path / folder / "dassl" / "engine" / "trainer.py").write_text(code)
    assert way_out(lacks, "", fork, bundled=True).startswith(f"PYTHONPATH='{tmp_path.resolve()}/Dassl.ProGrad', ")


@pytest.mark.parametrize(
    ("error", "where", "expected"),
    [
        ("ModuleNotFoundError: No module named 'pkg_resources'", "", "pip install 'setuptools<70'"),
        ("ImportError: cannot import name 'packaging' from 'pkg_resources' (x)", "", "pip install 'setuptools<70'"),
        ("UnpicklingError: Weights only load failed. ...", "", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1"),
        ("ModuleNotFoundError: No module named 'plotnine'", "", "pip install plotnine, which the fork needs"),
        ("ImportError: cannot import name 'mixup' from 'dassl.modeling.ops' (x)", "", "the bundled engine has no mixup"),
        ("ModuleNotFoundError: No module named 'dassl.modeling'", "", "the bundled engine has no modeling"),
        ("ValueError: 'TASK' is not in list", "train.py, line 2: opts.index('TASK')", "--set TASK VALUE"),
        ("KeyError: 'EmojiMeals'", "", "knows some data sets by name"),
        ("AssertionError", "train.py, line 3: f(cfg.DATASET.NAME)", "knows some data sets by name"),
        ("AttributeError: 'NoneType' object has no attribute 'dtype'", "", ""),
    ],
)
def test_the_way_out_is_named_where_it_is_known(error, where, expected, tmp_path):
    found = way_out(error, where, tmp_path, bundled=True)
    assert expected in found and bool(expected) == bool(found)


def test_a_package_of_the_fork_itself_is_never_one_to_install(tmp_path):
    (tmp_path / "trainers").mkdir()
    found = way_out("ModuleNotFoundError: No module named 'trainers.hpt'", "", tmp_path, bundled=True)
    assert "pip" not in found and "'trainers' is of the fork itself" in found


def test_a_folder_in_whose_place_an_installed_package_is_found_is_named(tmp_path):
    """KDPL brings `clip`, which a folder without __init__.py does not hide."""
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "clip.py").write_text("")
    error = "TypeError: build_model() takes 1 positional argument but 2 were given"
    where = "FORK/trainers/coop.py, line 36: model = clip.build_model(state_dict, design_details)"
    expected = (
        f"the installed package 'clip' is found in place of the fork's folder.*: create an empty '{tmp_path}/clip/__init__.py'"
    )
    assert re.search(expected, way_out(error, where, tmp_path, bundled=True))
    assert way_out(error, "FORK/trainers/coop.py, line 3: f(x)", tmp_path, bundled=True) == ""
    (tmp_path / "clip" / "__init__.py").write_text("")
    assert way_out(error, where, tmp_path, bundled=True) == ""


def trials(monkeypatch, *results):
    """Let trials have these results, and return a list of their arguments."""
    runs, rest = [], list(results)
    monkeypatch.setattr(report, "trial", lambda fork, *args: runs.append(args) or rest.pop(0))
    return runs


WORKS = {"learned": 3, "moved": 3, "still": [], "steps": 10, "config_file": "a.yaml", "data_file": "b.yaml"}


def test_a_trainer_is_tried_again_with_what_a_refusal_asks_for_and_the_command_that_works_is_printed(monkeypatch, tmp_path):
    scale = {"error": "... Set TRAINER.KDPL.TEACHER_LOGIT_SCALE to 'own' or a number", "where": "train.py, line 1: main()"}
    refused = {"refused": "... set TRAINER.KDPL.ALLOW hard_labels.", "where": "a.py, line 1: unique(y)"}
    runs = trials(monkeypatch, scale, refused, WORKS)
    first, second, third = report.tried(tmp_path, "MMRL", "KDPL_MMRL", ["TASK", "B2N"])
    assert first.works is second.works is None and "in a.py, line 1: unique(y)" in str(second)
    options = ("TASK", "B2N", "TRAINER.KDPL.TEACHER_LOGIT_SCALE", "own", "TRAINER.KDPL.ALLOW", "hard_labels")
    assert runs[2] == ("--trainer", "MMRL", "--set", *options)
    assert str(third).startswith(f"ok   KDPL_MMRL with {' '.join(options)}: 10 steps without labels, 3 of 3")
    assert str(third).endswith(
        "python train.py --trainer KDPL_MMRL --root DATA --config-file a.yaml --dataset-config-file b.yaml --output-dir OUTPUT "
        + " ".join(options)
    )


def test_settings_that_the_forks_files_lack_are_found_and_said(monkeypatch, tmp_path):
    normalize = {
        "error": "ConfigError: INPUT.TRANSFORMS () has no 'normalize': CLIP takes ...",
        "where": "train.py, line 1: main()",
    }
    staged = {"error": "ValueError: ... OPTIM.STAGED_LR is True with ...", "where": "train.py, line 1: main()"}
    runs = trials(monkeypatch, normalize, staged, WORKS)
    *_, last = report.tried(tmp_path, "A", "KDPL_A")
    assert runs[2][-4:] == (
        *("INPUT.TRANSFORMS", "['random_resized_crop','random_flip','normalize']"),
        *("OPTIM.STAGED_LR", "False"),
    )
    assert """INPUT.TRANSFORMS '['"'"'random_resized_crop'"'"',""" in str(last)


def test_a_trial_reads_the_files_of_a_fork_that_has_no_extend_cfg(tmp_path, monkeypatch):
    """Its nodes are made in its main(), where a trial does not reach before it has chosen the settings of that."""
    from kdpl.forks import trial

    folder = tmp_path / "configs/trainers/Focal/base2new"
    folder.mkdir(parents=True)
    (folder / "vit.yaml").write_text(
        "TRAINER: {FOCAL: {GAMMA: 2.0, PREC: fp16, PROMPT_DEPTH: 9}}\nOPTIM: {FOCUS: 3}\n"
        "DATALOADER: {TRAIN_X: {BATCH_SIZE: 2}}\n"
    )
    monkeypatch.chdir(tmp_path)
    file = trial.config_file("Focal")
    assert file == "configs/trainers/Focal/base2new/vit.yaml"
    cfg = trial.configuration(SimpleNamespace(main=None), file)
    assert cfg.TRAINER.FOCAL.GAMMA == 2.0 and cfg.OPTIM.FOCUS == 3
    settings = trial.short_run(cfg, 3, labels=False)
    assert (
        settings[settings.index("DATALOADER.TRAIN_X.BATCH_SIZE") + 1] == settings[settings.index("DATASET.NUM_SHOTS") + 1] == 2
    )
    assert "INPUT.TRANSFORMS" not in settings, "the file has none, which the command must give"
    assert settings[-4:] == ["TRAINER.FOCAL.PREC", "fp32", "TRAINER.FOCAL.PROMPT_DEPTH", 3]


def test_a_trainer_that_stops_says_whether_it_runs_with_its_labels(monkeypatch, tmp_path):
    error = {"error": "ValueError: no", "where": "a.py, line 2: f()"}
    runs = trials(monkeypatch, error, error, {"ran": True})
    (finding,) = report.tried(tmp_path, "A", "KDPL_A")
    assert finding.works is False and "with its labels it runs" in str(finding)
    assert runs[1][-2:] == ("--layers", "12") and "--labels" in runs[2]
    trials(monkeypatch, error, error, {"error": "ValueError: no"})
    (finding,) = report.tried(tmp_path, "A", "KDPL_A")
    assert finding.works is None and "with its labels it stops too: ValueError: no" in str(finding)


def test_parameters_that_are_still_are_tried_with_a_deeper_clip_and_then_named(monkeypatch, tmp_path):
    runs = trials(monkeypatch, {**WORKS, "still": ["a", "b"], "moved": 1}, {**WORKS, "still": ["c"], "moved": 2})
    (finding,) = report.tried(tmp_path, "CoOp", "Wrapped_CoOp")
    assert len(runs) == 2 and runs[1][-2:] == ("--layers", "12")
    assert str(finding).startswith("ok   Wrapped_CoOp: 10 steps without labels, 2 of 3 learned parameters moved; not c\n")


def test_settings_files_and_layers_reach_every_trial(monkeypatch, tmp_path, capsys):
    (tmp_path / "train.py").write_text(TRAIN)
    listed = {"mended": [], "trainers": {"A": "KDPL_A", "VPT": "Wrapped_VPT"}, "kdpl": "1", "torch": "2", "dassl": "bundled"}
    runs = trials(monkeypatch, listed, WORKS)
    monkeypatch.setattr(report, "_own_trainer", lambda *args: report.Finding(True, str(args[2])))
    options = ["--trainer", "KDPL_A", "--set", "TASK", "B2N", "--layers", "5", "--prepare", "x.py", "--root", "data"]
    assert install.main([str(tmp_path), *options]) == 0
    files = ("--prepare", os.path.abspath("x.py"), "--root", os.path.abspath("data"), "--clips")
    assert runs[1][:7] == ("--trainer", "A", *files) and runs[1][8:] == ("--layers", "5", "--set", "TASK", "B2N")
    printed = capsys.readouterr().out
    assert "note KDPL_VPT is KDPL's own VPT; that of this fork, perhaps another method, is Wrapped_VPT" in printed


STOPS = {"error": "AssertionError: a trainer of ours", "where": "train.py, line 9: assert name in OURS", "own": True}


@pytest.mark.parametrize(
    ("results", "status"),
    [
        ((STOPS, WORKS), 0),  # of the fork's code before any trainer is built: KDPL_CoOp is none of its own
        ((STOPS, STOPS, STOPS, WORKS), 0),  # A stops with its labels too, B learns
        ((STOPS, STOPS, {"ran": True}, WORKS), 1),  # A runs with its labels alone
        (({**STOPS, "own": False}, WORKS), 1),  # raised by KDPL
        ((STOPS, STOPS, STOPS, STOPS, STOPS), 1),  # nothing has learned
    ],
)
def test_limits_of_a_fork_are_notes_and_the_status_says_whether_its_trainers_learn(
    results, status, monkeypatch, tmp_path, capsys
):
    (tmp_path / "train.py").write_text(TRAIN)
    names = {"A": "KDPL_A", "B": "KDPL_B"} if len(results) > 2 else {"A": "KDPL_A"}
    listed = {"mended": [], "trainers": names, "kdpl": "1", "torch": "2", "dassl": "bundled"}
    own, *rest = results
    trials(monkeypatch, listed, *rest)
    monkeypatch.setattr(report, "run_python", lambda *args: own)
    assert install.main([str(tmp_path), "--layers", "3"]) == status
    printed = capsys.readouterr().out
    of_the_fork = "a limit of this fork's code, for its own trainers: those of KDPL train by python -m kdpl.train" in printed
    assert of_the_fork == own["own"]
    assert ("No trainer has learned without labels" in printed) == (results[-1] is STOPS)


def test_an_error_is_the_forks_own_if_its_code_raised_it(tmp_path):
    assert in_fork(tmp_path, "assert 1 == 2, 'ours alone'\n")["own"] is True
    assert in_fork(tmp_path, "import json\njson.loads('x')\n")["own"] is False


def load_run(name="run"):
    """The script of the table of runs, or a file beside it."""
    from importlib import util

    spec = util.spec_from_file_location(f"forks_{name}", ROOT / "tests" / "forks" / f"{name}.py")
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("exact", "in_double", "digest", "holds"),
    [(1e-7, 1, "x", True), (1e-5, 1e-15, "x", True), (1e-5, 1e-9, "x", False), (1e-7, 1, "y", False)],
)
def test_the_table_of_runs_says_where_permuted_labels_or_the_formula_give_another_result(
    exact, in_double, digest, holds, monkeypatch, tmp_path
):
    """Above the bound a difference is rounding if it is as much smaller in double precision."""
    from argparse import Namespace

    runs = load_run()
    args = Namespace(prepare=[], set=["A.B", "1"], layers="")
    options = ["DATASET.NUM_SHOTS", "-1", "A.B", "1"]
    found = {**WORKS, "loss_differs": 1e-8, "gradient_of_parameters_differs": exact, "digest": "x", "layers": "3"}
    double = {"loss_differs": 1e-16, "gradient_of_parameters_differs": in_double}
    monkeypatch.setattr(runs, "tried", lambda *a: iter([report.Finding(True, "", found, options)]))
    monkeypatch.setattr(runs, "trial", lambda fork, *a: double if runs.MEASURES["double"][1] in a else {"digest": digest})
    line, held = runs.row(tmp_path, "A", "KDPL_A", args, [tmp_path / "true", tmp_path / "permuted"])
    assert held == holds and ("the same bits" in line) == (digest == "x") and ("DIFFERS" in line) == (digest == "y")
    said = f"1e-08, -, {exact:.0e}" + (f"; in double precision 1e-16, {in_double:.0e}" if exact > 1e-6 else "")
    assert "| `A.B 1` | 10 steps, 3 of 3 parameters moved |" in line and line.endswith(f" {said} |\n")


@pytest.mark.parametrize(
    ("found", "works", "holds"),
    [({"refused": "no"}, False, True), ({"error": "no"}, False, False), ({"error": "no"}, None, True)],
)
def test_a_row_of_a_trainer_that_stops_holds_if_a_reason_is_given_or_it_stops_with_its_labels(
    found, works, holds, monkeypatch, tmp_path
):
    from argparse import Namespace

    runs = load_run()
    monkeypatch.setattr(runs, "tried", lambda *a: iter([report.Finding(works, f"KDPL_A: no\n     in {tmp_path}/a.py", found)]))
    args = Namespace(prepare=[], set=[], layers="")
    line, held = runs.row(tmp_path, "A", "KDPL_A", args, [tmp_path / "true", tmp_path / "permuted"])
    assert held == holds and "| no; in ./a.py |" in line


def test_in_double_precision_what_asks_for_single_computes_in_double():
    import torch
    import torch.nn.functional as F

    from kdpl.distill.interception import replace_cross_entropy

    with load_run("double").InDoublePrecision():
        x = torch.ones(2, 3, dtype=torch.float32)
        labels, replaced = replace_cross_entropy(torch.randn(2, 3))
        with replaced:
            loss = F.cross_entropy(x, labels.to(torch.device("cpu")))
        half = torch.ones(2, dtype=torch.float16)
        made = [half.to(torch.float32), half.type(torch.float32), half.float(), x.softmax(0, dtype=torch.float32)]
        for found in (x, loss, *made, torch.nn.Linear(2, 2).float().weight):
            assert found.dtype == torch.float64
    assert torch.zeros(1).dtype == half.float().dtype == half.to(torch.float32).dtype == torch.float32


def test_permuted_data_have_the_same_images_and_as_many_of_each_class(tmp_path):
    import json

    runs = load_run()
    splits = []
    for permute in (False, True):
        folder = runs.write_data(tmp_path / str(permute), permute)
        splits.append(json.loads((folder / "caltech-101/split_zhou_Caltech101.json").read_text()))
    plain, permuted = splits
    assert [row[0] for row in plain["train"]] == [row[0] for row in permuted["train"]] and plain["test"] == permuted["test"]
    half = len(plain["train"]) // 2
    for part in (slice(0, half), slice(half, None)):
        old, new = ([row[1:] for row in split["train"][part]] for split in splits)
        assert old != new and sorted(old) == sorted(new)


def test_the_name_of_a_trainer_that_kdpl_has_too_is_said_on_the_command_line(monkeypatch, capsys, request):
    import fork_styles
    from dassl.engine import TRAINER_REGISTRY

    import kdpl.trainers.baselines  # noqa: F401
    from kdpl.trainers import offer_distilled
    from kdpl.trainers.wrapped import DistilledTrainer

    ours = TRAINER_REGISTRY.get("VPT")
    request.addfinalizer(lambda: TRAINER_REGISTRY.register(ours, force=True))  # other tests build it
    TRAINER_REGISTRY.register(type("VPT", (fork_styles.StyleCoOp,), {"__module__": "trainers.vpt"}), force=True)
    monkeypatch.setattr(sys, "argv", ["train.py", "--trainer", "KDPL_VPT"])
    offer_distilled()
    assert "KDPL_VPT is KDPL's own, not VPT of trainers.vpt: for that one, --trainer Wrapped_VPT." in capsys.readouterr().out
    assert sys.argv[2] == "KDPL_VPT" and not issubclass(TRAINER_REGISTRY.get("VPT"), DistilledTrainer)
    monkeypatch.setattr(sys, "argv", ["train.py", "--trainer=Wrapped_VPT"])
    offer_distilled()
    assert sys.argv[1] == "--trainer=VPT" and issubclass(TRAINER_REGISTRY.get("VPT"), DistilledTrainer)
