"""The command `kdpl`: every command under one name."""

import pytest

from kdpl.__main__ import COMMANDS, main, usage
from kdpl.common import exits


def test_the_help_fits_a_screen_and_names_every_command(capsys):
    assert main(["--help"]) == main([]) == 0
    lines = capsys.readouterr().out.split("\n")
    assert len(usage().split("\n")) <= 24 and max(map(len, lines)) <= 80
    assert all(f"  {name} " in usage() for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_fits_a_screen(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    with pytest.raises(SystemExit) as end:
        main([name, "--help"])
    out = capsys.readouterr().out
    photos = name in ("fit", "predict", "names", "eval", "export")  # what people meet first; some others have more flags
    assert end.value.code == 0 and (f"usage: kdpl {name} " if photos else "usage: ") in out
    assert len(out.splitlines()) <= (40 if photos else 45)


def test_a_mistyped_command_is_answered_with_the_closest(capsys):
    assert main(["predcit"]) == exits.BAD_INPUT
    assert "'predcit' is not a command of kdpl. Did you mean 'predict'?" in capsys.readouterr().err
    assert main(["--version"]) == 0 and capsys.readouterr().out.startswith("kdpl ")


def test_a_cache_folder_of_nobody_is_named_before_any_work(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("KDPL_CACHE", "~nobody-of-this-name/x")
    assert main(["fit", "--demo", "-o", str(tmp_path / "demo")]) == exits.BAD_INPUT
    assert "KDPL_CACHE is '~nobody-of-this-name/x', and there is no such user" in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()
