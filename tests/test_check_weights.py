"""`kdpl check-weights`: what is measured agrees with the figures that plain evaluation gave, and nothing wrong agrees."""

import os
import re
import signal
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torchvision.transforms as T
import yaml
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from support import ROOT, emoji_args, processes, release

from kdpl import train
from kdpl.check_weights import main
from kdpl.clip.files import file_sha256
from kdpl.clip.inputs import Normalize
from kdpl.clip.loading import find_weights
from kdpl.clip.names import resolve
from kdpl.common import exits
from kdpl.experiments import figures
from kdpl.experiments.figures import PAPER, Figure, Measurement, Setup, published_figures, read_figures
from kdpl.experiments.report.tables import PAPER_TEACHER, published
from kdpl.experiments.sweep import work
from kdpl.trainers import evaluation
from kdpl.training.results import read_results

DATASET = "emoji_sky"
SHORT = ("OPTIM.MAX_EPOCH", "1")
WHERE = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
MODELS = {"ZeroshotCLIP": "emoji_student", "ZeroshotTeacher": "emoji_teacher", "KDPL_VPT": "emoji_student"}


def plain(trainer: str, folder: Path) -> float:
    """Return the accuracy that a plain run of `train.py` gives."""
    shots = () if trainer.startswith("Zeroshot") else ("DATASET.NUM_SHOTS", "16", *SHORT)
    assert train.main([*emoji_args(trainer, folder, DATASET), *shots]) == 0
    release(folder)
    return read_results(folder)["results"][0]["accuracy"]


@pytest.fixture(scope="module")
def accuracies(tmp_path_factory) -> dict[str, float]:
    folder = tmp_path_factory.mktemp("plain")
    return {trainer: plain(trainer, folder / trainer) for trainer in MODELS}


class Here:
    """A run in this process, whose code a test may have broken."""

    def __init__(self, command: list[str], **streams):
        self.status = train.main(command[2:])
        release(command[command.index("--output-dir") + 1])

    def wait(self, seconds: float) -> int:
        return self.status


@pytest.fixture(autouse=True)
def here(monkeypatch):
    names = {name: getattr(subprocess, name) for name in ("DEVNULL", "TimeoutExpired")}
    monkeypatch.setattr(work, "subprocess", SimpleNamespace(Popen=Here, **names))


@pytest.fixture
def in_processes(here, monkeypatch):
    monkeypatch.setattr(work.subprocess, "Popen", processes.Popen)


def expect(folder: Path, accuracies: dict[str, float], *methods: str, off: float = 0.0) -> list[str]:
    """Return the flags for a file with the figures of some methods, `off` points away from the measured ones."""
    content = {}
    for method in methods:
        entry = {"accuracy": accuracies[method] + off, "tolerance": 0.01}
        entry |= {"teacher": "emoji_teacher"} if method.startswith("KDPL_") else {}
        content[method] = {MODELS[method]: {DATASET: entry}}
    file = folder / "figures.yaml"
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    return ["--expect", str(file), "--output", str(folder / "out")]


@pytest.mark.slow
def test_an_installation_that_measures_the_same_agrees_once_and_again(accuracies, in_processes, tmp_path, capsys, monkeypatch):
    flags = [*expect(tmp_path, accuracies, *MODELS), "--", *SHORT]
    assert main(flags) == 0
    report = (tmp_path / "out/check_weights.md").read_text(encoding="utf-8")
    assert report in capsys.readouterr().out and report.count("| agrees |") == len(MODELS)
    for model in ("emoji_student", "emoji_teacher"):
        assert file_sha256(Path(resolve(model).path)) in report
    assert (
        f"on {WHERE} in fp32" in report
        and f"other than the published ones: {' '.join(SHORT)}." in report
        and f"torch {torch.__version__}" in report
    )
    commands = report.split("```")[1].splitlines()[1:]
    assert len(commands) == len(MODELS) and all("train.py" in c and DATASET in c for c in commands)

    monkeypatch.setattr(work, "subprocess", None)  # what is measured starts no process
    assert main(flags) == 0
    assert capsys.readouterr().out.count("measured before") == len(MODELS)


@pytest.mark.slow
def test_a_figure_that_is_off_differs(accuracies, tmp_path, capsys):
    assert main(expect(tmp_path, accuracies, "ZeroshotCLIP", off=0.5)) == exits.DIFFERS
    assert "| -0.50 | 0.01 | differs |" in capsys.readouterr().out


@pytest.mark.slow
def test_another_weight_file_differs_and_the_same_numbers_in_another_file_agree(accuracies, tmp_path, capsys):
    state = load_file(resolve("emoji_student").path)
    save_file(state, tmp_path / "same.safetensors", {"note": "another file"})
    flags = expect(tmp_path, accuracies, "ZeroshotCLIP")
    assert main([*flags, "--weights", f"emoji_student={tmp_path / 'same.safetensors'}"]) == 0
    name = "visual.transformer.resblocks.1.mlp.c_proj.weight"
    save_file({**state, name: -state[name]}, tmp_path / "changed.safetensors")
    capsys.readouterr()
    assert main([*flags, "--weights", f"emoji_student={tmp_path / 'changed.safetensors'}"]) == exits.DIFFERS
    out = capsys.readouterr().out
    assert "measured before" not in out and file_sha256(tmp_path / "changed.safetensors") in out


@pytest.mark.slow
def test_a_file_that_was_replaced_is_measured_again(accuracies, tmp_path, capsys):
    """The configuration names it as before, so the settings of the result are the same."""
    state, file = load_file(resolve("emoji_student").path), tmp_path / "clip.safetensors"
    flags = [*expect(tmp_path, accuracies, "ZeroshotCLIP"), "--weights", f"emoji_student={file}"]
    save_file(state, file)
    assert main(flags) == 0
    name = "visual.transformer.resblocks.1.mlp.c_proj.weight"
    save_file({**state, name: -state[name]}, file)
    assert main(flags) == exits.DIFFERS


@pytest.mark.slow
def test_what_was_measured_with_other_settings_is_measured_again(accuracies, tmp_path, capsys):
    """The manifest of a student without prompts does not have its precision."""
    flags = expect(tmp_path, accuracies, "ZeroshotCLIP")
    for precision in ("fp32", "bf16"):
        main([*flags, "--", "TRAINER.COOP.PREC", precision])
        out = capsys.readouterr().out
        assert "measured before" not in out and f"on {WHERE} in {precision}, " in out


@pytest.mark.slow
@pytest.mark.parametrize("broken", ["mean", "resizing"])
def test_wrong_preprocessing_differs(broken, accuracies, tmp_path, monkeypatch):
    flags = expect(tmp_path, accuracies, "ZeroshotCLIP")
    assert main(flags) == 0
    if broken == "mean":
        monkeypatch.setattr(evaluation, "Normalize", lambda mean, std: Normalize((0.0, 0.0, 0.0), std))
    else:
        smaller = [T.Resize(24), T.Resize((64, 64))]
        monkeypatch.setattr(evaluation, "resized_as", lambda whole, _: T.Compose([*smaller, *whole.transforms]))
    assert main([*flags[:-1], str(tmp_path / "broken")]) == exits.DIFFERS


@pytest.mark.slow
def test_settings_that_contradict_a_model_are_refused_not_measured(accuracies, in_processes, tmp_path, capsys):
    assert main([*expect(tmp_path, accuracies, "ZeroshotCLIP"), "--", "INPUT.SIZE", "(32, 32)"]) == exits.FAILED
    assert "not measured: error: INPUT.SIZE" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("key", ["MODEL.BACKBONE.NAME", "TRAINER.KDPL.TEACHER"])
def test_no_setting_puts_another_model_behind_a_figure(key, accuracies, tmp_path, capsys):
    flags = expect(tmp_path, accuracies, "ZeroshotCLIP")
    assert main([*flags, "--", "TRAINER.COOP.PREC", "fp32", key, "emoji_teacher"]) == exits.BAD_INPUT
    assert f"{key} behind --" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_that_fails_is_not_measured_with_its_reason(accuracies, in_processes, tmp_path, capsys):
    flags = expect(tmp_path, accuracies, "ZeroshotCLIP", "ZeroshotTeacher")
    file = tmp_path / "clip.safetensors"
    save_file({"a": torch.zeros(2)}, file)
    assert main([*flags, "--weights", f"emoji_student={file}"]) == exits.FAILED
    out = capsys.readouterr().out
    assert "not measured: error: '" in out and "is not a checkpoint of an OpenAI CLIP" in out
    assert out.count("| agrees |") == 1, "the other figure is measured"


@pytest.mark.slow
def test_figures_that_are_left_out_need_nothing_and_are_named(accuracies, tmp_path, capsys):
    flags = expect(tmp_path, accuracies, *MODELS)
    assert main([*flags, "--only", "zero-shot", "--models", "emoji_student"]) == 0
    out = capsys.readouterr().out
    assert "Not measured, on request: KDPL_VPT of emoji_student on emoji_sky, ZeroshotTeacher of emoji_teacher" in out
    assert "emoji_teacher.safetensors" not in out and [p.name for p in (tmp_path / "out").iterdir() if p.is_dir()] == [DATASET]
    assert main([*flags, "--only", "training", "--models", "emoji_student"]) == exits.BAD_INPUT


def test_what_is_missing_is_named_before_anything_is_run(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(work, "subprocess", None)
    flags = ["--root", str(tmp_path / "data"), "--output", str(tmp_path / "out")]
    assert main([*flags, "--weights", f"ViT-B/32={tmp_path / 'none.pt'}"]) == exits.BAD_INPUT
    error = capsys.readouterr().err
    assert "the weights of 'RN50'" in error and f"the weights of 'ViT-B/32' ({tmp_path / 'none.pt'})" in error
    assert "the data set ImageNet" in error and "classnames.txt" in error and "docs/datasets.md" in error
    assert not (tmp_path / "out").exists()


def test_a_download_that_is_not_the_published_file_is_missing(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".cache/clip").mkdir(parents=True)
    (tmp_path / ".cache/clip/RN50.pt").write_bytes(b"half of it")
    assert main(["--models", "RN50", "--root", str(tmp_path)]) == exits.BAD_INPUT
    assert "the weights of 'RN50'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("ZeroshotClip: {a: {emoji_sky: {accuracy: 1, tolerance: 1}}}", "Did you mean 'ZeroshotCLIP'"),
        ("ZeroshotCLIP: {a: {emoji_ski: {accuracy: 1, tolerance: 1}}}", "Did you mean 'emoji_sky'"),
        ("ZeroshotCLIP: {a: {emoji_sky: {accuracy: 1}}}", "has the keys accuracy, expected accuracy, tolerance"),
        ("KDPL_CoOp: {a: {emoji_sky: {accuracy: 1, tolerance: 1}}}", "expected accuracy, tolerance, teacher"),
        ("ZeroshotCLIP: {a: {emoji_sky: {accuracy: .nan, tolerance: 1}}}", "expected a number from 0 to 100"),
        ("ZeroshotCLIP: {a: {emoji_sky: {accuracy: 1, tolerance: -1}}}", "expected a number from 0 to 100"),
        ("ZeroshotCLIP: {a: 62.0}", "expected DATASET"),
        ("ZeroshotCLIP: {a: {emoji_sky: {accuracy: 1, tolerance: 1}}}", "'a' is not an OpenAI CLIP model"),
    ],
)
def test_figures_that_cannot_be_meant_are_refused(content, message, tmp_path, capsys):
    (tmp_path / "figures.yaml").write_text(content, encoding="utf-8")
    assert main(["--expect", str(tmp_path / "figures.yaml"), "--output", str(tmp_path / "out")]) == exits.BAD_INPUT
    assert message in capsys.readouterr().err


def test_the_papers_figures_are_those_of_the_report_with_room_for_one_seed():
    found = {(f.method, f.model): f for f in published_figures("imagenet", 50_000, "KDPL_VPT")}
    assert {key: f.accuracy for key, f in found.items()} == {
        ("ZeroshotCLIP", "RN50"): 58.2,
        ("ZeroshotCLIP", "ViT-B/32"): 62.0,
        ("ZeroshotTeacher", "ViT-H-14-quickgelu"): 82.8,
        ("KDPL_VPT", "ViT-B/32"): published()["ViT-B/32", "KDPL_VPT"]["ImageNet"],
    }
    assert [f.tolerance for f in found.values()] == [0.3, 0.3, 0.3, 0.76] and {f.source for f in found.values()} == {PAPER}
    assert found["KDPL_VPT", "ViT-B/32"].models == ("ViT-B/32", "ViT-H-14-quickgelu")
    shifted = published_figures("imagenet_a", 7_500, "KDPL_VPT")
    assert not any(f.trains for f in shifted), "prompts are trained on ImageNet"
    assert min(f.tolerance for f in shifted) > 0.3, "fewer images say less"
    assert not published_figures("dtd", 1692, "KDPL_VPT")


@pytest.mark.parametrize(("accuracy", "verdict"), [(62.3, "agrees"), (61.7, "agrees"), (62.31, "differs"), (61.69, "differs")])
def test_a_verdict_holds_up_to_the_tolerance_and_no_further(accuracy, verdict):
    figure = Figure("ZeroshotCLIP", "ViT-B/32", "imagenet", 62.0, 0.3, PAPER)
    assert Measurement(figure, None, {"results": [{"dataset": "ImageNet", "accuracy": accuracy}]}).verdict == verdict


def test_the_example_of_the_page_is_a_file_of_figures(tmp_path):
    (example,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/reproduce.md").read_text(encoding="utf-8"), re.S)
    (tmp_path / "figures.yaml").write_text(example, encoding="utf-8")
    assert [figure.trains for figure in read_figures(tmp_path / "figures.yaml")] == [False, False, True]


def test_weights_of_the_hub_are_found_in_its_cache_and_named_as_they_are_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    folder = tmp_path / "models--apple--DFN5B-CLIP-ViT-H-14"
    file = folder / "snapshots" / ("0" * 40) / "open_clip_pytorch_model.bin"
    assert find_weights(PAPER_TEACHER) is None
    for path, content in ((file, "weights"), (folder / "refs/main", "0" * 40)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    assert find_weights(PAPER_TEACHER) == find_weights(f"{PAPER_TEACHER}:dfn5b") == file
    setup = Setup("", tmp_path, 1, {PAPER_TEACHER: file, "RN50": file}, {}, frozenset({PAPER_TEACHER, "RN50"}))
    assert setup.name(PAPER_TEACHER) == f"{PAPER_TEACHER}:dfn5b:{file}" and setup.name("RN50") == str(file)
    assert find_weights(setup.name(PAPER_TEACHER)) == file


@pytest.mark.slow
def test_a_stop_leaves_a_report_and_the_status_of_an_interruption(accuracies, tmp_path, capsys, monkeypatch):
    class Stopped(Here):
        def __init__(self, command: list[str], **streams):
            os.kill(os.getpid(), signal.SIGTERM)
            self.status = exits.INTERRUPTED

        def send_signal(self, number: int) -> None: ...

    with monkeypatch.context() as patch:
        patch.setattr(work.subprocess, "Popen", Stopped)
        assert main(expect(tmp_path, accuracies, "ZeroshotCLIP", "ZeroshotTeacher")) == exits.INTERRUPTED
    assert capsys.readouterr().out.count("| not measured: ") == 2
    assert main(expect(tmp_path, accuracies, "ZeroshotCLIP", "ZeroshotTeacher")) == 0


def test_a_folder_is_of_one_set_of_weights_data_settings_and_software(tmp_path, monkeypatch):
    figure = Figure("KDPL_CoOp", "emoji_student", DATASET, 50.0, 1.0, PAPER, "emoji_teacher")
    setup = Setup("/data", tmp_path, 1, {}, {"emoji_student": "a", "emoji_teacher": "b"})
    digests = [{"emoji_student": "c", "emoji_teacher": "b"}, {"emoji_student": "a", "emoji_teacher": "c"}]
    changes = [{"root": "/others"}, {"seed": 2}, {"options": SHORT}, *({"digests": each} for each in digests)]
    folders = [each.step(figure).folder for each in (setup, *(replace(setup, **change) for change in changes))]
    monkeypatch.setattr(figures, "versions", lambda: {"torch": "another"})
    folders.append(setup.step(figure).folder)
    assert len(set(folders)) == len(changes) + 2
    zero_shot = Figure("ZeroshotCLIP", "emoji_student", DATASET, 50.0, 1.0, PAPER)
    assert setup.step(zero_shot) == replace(setup, seed=2).step(zero_shot), "there is nothing random in it"
