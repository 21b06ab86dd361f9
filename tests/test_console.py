"""The command `kdpl`: every command under one name, also from a wheel that is installed far from the clone."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT

from kdpl.__main__ import COMMANDS, main, usage
from kdpl.common import exits
from kdpl.common.environment import PACKAGE
from kdpl.config.command_line import CONFIGS


def test_the_help_fits_a_screen_and_names_every_command(capsys):
    assert main(["--help"]) == main([]) == 0
    lines = capsys.readouterr().out.split("\n")
    assert len(usage().split("\n")) <= 24 and max(map(len, lines)) <= 80
    assert all(f"  {name} " in usage() for name in COMMANDS)


@pytest.mark.parametrize("name", ["fit", "names", "eval", "export"])
def test_the_help_of_a_command_fits_a_screen(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    with pytest.raises(SystemExit) as end:
        main([name, "--help"])
    out = capsys.readouterr().out
    assert end.value.code == 0 and f"kdpl {name}" in out and len(out.splitlines()) <= 40


def test_every_command_is_there(capsys):
    for name in COMMANDS:
        with pytest.raises(SystemExit) as end:
            main([name, "--help"])
        assert end.value.code == 0 and "usage:" in capsys.readouterr().out


def test_a_mistyped_command_is_answered_with_the_closest(capsys):
    assert main(["predcit"]) == exits.BAD_INPUT
    assert "'predcit' is not a command of kdpl. Did you mean 'predict'?" in capsys.readouterr().err
    assert main(["--version"]) == 0 and capsys.readouterr().out.startswith("kdpl ")


def test_the_entry_point_is_the_command():
    tomllib = pytest.importorskip("tomllib")  # since Python 3.11
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    assert scripts == {"kdpl": "kdpl.__main__:main"}
    assert PACKAGE.parent / "configs" == CONFIGS and (CONFIGS / "datasets" / "image_folder.yaml").is_file()


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A Python with kdpl installed from a wheel, whose other packages are those of this one."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    kept = ("kdpl", "trainers", "datasets", "configs", "setup.py", "pyproject.toml", "README.md", "LICENSE")
    for name in kept:
        path = ROOT / name
        if path.is_dir():
            shutil.copytree(path, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            source.mkdir(exist_ok=True)
            shutil.copy(path, source / name)
    pip = [sys.executable, "-m", "pip"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", str(folder), str(source)]
    process = subprocess.run(build, capture_output=True, text=True, check=False, cwd=folder)
    if process.returncode:
        pytest.skip(f"no wheel can be built here: {process.stderr[-300:]}")
    target = folder / "site"
    (wheel,) = folder.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "-q", "--target", str(target), str(wheel)], check=True, cwd=folder)
    shutil.rmtree(source)
    return target


@pytest.mark.slow
def test_fit_and_predict_work_from_a_wheel_far_from_the_clone(installed, tmp_path):
    env = {**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1", "KDPL_CACHE": str(tmp_path / "cache")}
    (console,) = (installed / "bin").glob("kdpl*")

    def kdpl(*words):
        command = [sys.executable, str(console), *words]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=env, timeout=500)

    where = subprocess.run(
        [sys.executable, "-c", "import kdpl, kdpl.config.command_line as c; print(kdpl.__file__, c.CONFIGS)"],
        capture_output=True, text=True, check=True, cwd=tmp_path, env=env,
    ).stdout.split()  # fmt: skip
    assert Path(where[0]).is_relative_to(installed) and Path(where[1]) == installed / "kdpl" / "configs"
    fitted = kdpl("fit", "--demo", "--quick", "--quiet", "-o", "demo")
    assert fitted.returncode == 0, fitted.stderr
    assert "Did it help?" in fitted.stdout and "kdpl predict demo/prompts demo/new_photos" in fitted.stdout
    predicted = kdpl("predict", "demo/prompts", "demo/new_photos", "--csv", "p.csv", "--quiet")
    assert predicted.returncode == 0 and "464 images" in predicted.stderr, predicted.stderr
    judged = kdpl("eval", "demo/prompts", "--labels", "demo/labels.csv")
    assert judged.returncode == 0 and "of 464 photos" in judged.stdout, judged.stderr
    planned = kdpl("estimate", "--trainer", "KDPL_CoOp", "--gpu", "t4", "--classes", "10")
    assert planned.returncode == 0 and "ESTIMATE" in planned.stdout, planned.stderr
    exported = kdpl("export", "demo/prompts", "served", "--no-page")
    assert exported.returncode == 0 or "pip install 'kdpl[onnx]'" in exported.stderr, exported.stderr
