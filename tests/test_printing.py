"""Whatever prints, no name gives a terminal or a log orders or begins a line: every command, every `print` and every error."""

import ast
import runpy
import sys
import threading

import pytest
from support import ROOT
from yacs.config import CfgNode

from kdpl.common import exits, safe_text
from kdpl.common.safe_text import ArgumentParser, Lines, lines, run_command, settings_lines, silent_thread, text_table

EXPORTED = "kdpl/classifier/serve"  # copied into exported folders, where there is no KDPL
HOSTILE = "a\x1b[2Jb\rc\nd\u2028e\u202ef\x9bg\x85h\u2066i"
SAFE = r"a\x1b[2Jb\rc\nd\u2028e\u202ef\x9bg\x85h\u2066i"


def tree_of(name):
    return ast.parse((ROOT / name).read_text(encoding="utf-8"))


def is_command(name):
    """Whether a file can be run; it is parsed only if it may be one, since every collection of the tests asks."""
    tree = tree_of(name) if "__main__" in (ROOT / name).read_text(encoding="utf-8") else None
    return tree is not None and any(isinstance(n, ast.If) and "__main__" in ast.unparse(n.test) for n in tree.body)


PACKAGE = [p for folder in ("kdpl", "trainers", "datasets") for p in sorted((ROOT / folder).rglob("*.py"))]
FILES = [p.relative_to(ROOT).as_posix() for p in (*PACKAGE, ROOT / "train.py", ROOT / "predict.py")]
FILES = [name for name in FILES if not name.startswith(EXPORTED)]
COMMANDS = [name for name in FILES if is_command(name)]


@pytest.mark.parametrize("name", COMMANDS)
def test_all_that_a_command_prints_is_printable(name, monkeypatch, capsys):
    """A module that is run in whatever way hands its `main` to the function that makes its output printable."""
    seen = []
    monkeypatch.setattr(safe_text, "run_command", lambda main: seen.append(main) or 0)
    monkeypatch.setattr(sys, "argv", ["kdpl", *(["models"] if name == "kdpl/__main__.py" else []), "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / name), run_name="__main__")
    assert (end.value.code, len(seen), capsys.readouterr().out) == (0, 1, "")


def test_all_commands_are_found():
    some = {"kdpl/__main__.py", "kdpl/sweep.py", "kdpl/train.py", "datasets/prepare.py", "predict.py"}
    assert len(COMMANDS) >= 16 and some <= {*COMMANDS}


@pytest.mark.parametrize("name", [name for name in FILES if name != "kdpl/common/safe_text.py"])
def test_names_are_printed_on_one_line(name):
    """Python's own `print`, parser and tables are for the module safe_text alone; line breaks stand between values."""
    tree = tree_of(name)
    imports = {a.name: n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) for a in n.names}
    for call in (n for n in ast.walk(tree) if isinstance(n, ast.Call)):
        what = ast.unparse(call.func)
        assert what not in ("argparse.ArgumentParser", "sys.stdout.write", "sys.stderr.write", "builtins.print"), what
        if what in ("print", "ArgumentParser", "tabulate"):
            assert imports.get(what) == "kdpl.common.safe_text", f"line {call.lineno}: {ast.unparse(call)}"
        if what == "print":
            texts = [n.value for arg in call.args for n in ast.walk(arg) if isinstance(n, ast.Constant)]
            assert not [t for t in texts if isinstance(t, str) and "\n" in t], f"line {call.lineno}: use sep=, end= or Lines"


def test_each_value_is_printed_on_one_line(capsys):
    safe_text.print(HOSTILE, f"x {HOSTILE}", 1, sep="\n", end="!\n\n")
    safe_text.print(Lines(f"meant\nso, \x1b[2J\r{HOSTILE[0]}"), file=sys.stderr)
    out, err = capsys.readouterr()
    assert (out, err) == (f"{SAFE}\nx {SAFE}\n1!\n\n", "meant\nso, \\x1b[2J\\ra\n")
    assert lines("a\nb", Lines("c\nd")) == "a\\nb\nc\nd"


def test_a_cell_and_a_setting_are_on_one_line():
    assert text_table([(HOSTILE, 1)], [HOSTILE, "n"]).count("\n") == 2
    cfg = CfgNode({"A": CfgNode({"B": HOSTILE, "C": 1}), "D": HOSTILE})
    assert sorted(settings_lines(cfg).split("\n")) == ["  B: " + SAFE, "  C: 1", "A:", "D: " + SAFE]
    assert cfg.A.B == HOSTILE


def test_an_error_is_on_one_line(capsys, monkeypatch):
    exits.report(ValueError(f"'{HOSTILE}' is wrong"), exits.BAD_INPUT)
    exits.report(ValueError(lines("These are wrong:", HOSTILE)), exits.BAD_INPUT)
    with pytest.raises(SystemExit):
        ArgumentParser(prog="x", usage="x").parse_args([HOSTILE])
    shown = [f"error: '{SAFE}' is wrong", "error: These are wrong:", SAFE, "usage: x"]
    assert capsys.readouterr().err.split("\n") == [*shown, f"x: error: unrecognized arguments: {SAFE}", ""]

    def fails():
        raise RuntimeError("\x1b[2J\u202e")

    assert run_command(fails) == exits.FAILED
    assert capsys.readouterr().err.endswith("RuntimeError: \\x1b[2J\\u202e\n")


def test_a_return_is_for_progress_alone(capsys):
    with safe_text.printable_output():
        for text in ("\r 10%", "\r", "a\r\n", "name\rforged"):
            sys.stdout.write(text)
        sys.stdout.writelines(["\x1b[2J", "b"])
    assert capsys.readouterr().out == "\r 10%\ra\r\nname\\rforged\\x1b[2Jb"


def test_threads_that_are_silent_at_the_same_time_leave_the_output_to_the_others(capsys):
    """Their ends overlap: the first to begin is the first to end."""
    ended, both = [threading.Event(), threading.Event()], threading.Barrier(3)
    output = sys.stdout

    def look(n):
        with silent_thread():
            print("dropped")
            both.wait(10)
            ended[n].wait(10)
            print("dropped")

    threads = [threading.Thread(target=look, args=(n,)) for n in range(2)]
    for thread in threads:
        thread.start()
    both.wait(10)
    for event, thread in zip(ended, threads, strict=True):
        print("shown")
        event.set()
        thread.join()
    print("shown")
    assert sys.stdout is output and capsys.readouterr().out == "shown\n" * 3
