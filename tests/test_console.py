"""The command `kdpl`: every command under one name."""

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


@pytest.mark.parametrize("name", ["fit", "names", "eval", "export", "push"])
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
