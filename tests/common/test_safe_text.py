"""No name runs anything: terminals and logs get no control characters, spreadsheets no formulas, cards no mark-up."""

import csv
import dataclasses
import io
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import untrained_bundle

from kdpl.bundle import read_bundle
from kdpl.bundle.card import model_card
from kdpl.classifier.predictions import Row, csv_writer
from kdpl.common import exits
from kdpl.common.command import escape_streams, run_command
from kdpl.common.safe_text import from_cell, on_one_line, printable, to_cell
from kdpl.photos.evaluate import read_labels

ORDERS = ["\x1b[2J", "\x9b31m", "\x7f", "\u202e", "\u2028", "\udcff"]
FORMULAS = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "'=1", "''=1", "'plain", "-", "\n=1", "\uff1d1", "\uff20SUM(A1)"]


@pytest.mark.parametrize("order", ORDERS)
def test_what_a_terminal_would_obey_is_spelt_out(order):
    text = f"a{order}b\nc"
    escaped = order.encode("unicode_escape").decode() if order[0] != "\x1b" else order.replace("\x1b", "\\x1b")
    assert on_one_line(text) == f"a{escaped}b\\nc" and printable(text) == f"a{escaped}b\nc"
    assert on_one_line("naïve 猫 👩‍💻 خط") == "naïve 猫 👩‍💻 خط"


def test_what_commands_print_is_escaped(capsys):
    """Whatever prints, also an engine's logger that takes the place of the output, and a return that is not progress."""

    def prints():
        print("a\x1b[2Jb\u202ec")
        print("\r 10%")
        sys.stdout.writelines(["\x1b[2J", "b\n"])
        sys.stdout = log
        escape_streams()
        print("\x1b[2J")
        raise RuntimeError("\x1b[2J")

    log = io.StringIO()
    assert run_command(prints) == exits.FAILED
    out, err = capsys.readouterr()
    assert out == "a\\x1b[2Jb\\u202ec\n\r 10%\n\\x1b[2Jb\n" and log.getvalue() == "\\x1b[2J\n"
    assert err.endswith("RuntimeError: \\x1b[2J\n")


@given(st.text(st.sampled_from("'=+-@\t\r\n\uff0b a1"), max_size=5))
def test_a_cell_is_no_formula_and_reads_back_the_same(text):
    cell = to_cell(text)
    assert from_cell(cell) == text and not cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n", "\uff0b"))


def test_a_table_of_predictions_has_no_formulas_and_is_evaluated(tmp_path):
    file = tmp_path / "p.csv"
    with file.open("w", newline="") as table:
        rows = [Row(path, [name], [0.5]) for path, name in zip(FORMULAS, reversed(FORMULAS), strict=True)]
        csv_writer(table, 1)(rows)
    with file.open(newline="") as lines:
        rows = list(csv.reader(lines))
    assert not [cell for row in rows for cell in row if cell[:1] in {"=", "+", "-", "@", "\t"}]
    file.write_text(file.read_text().replace("path,name,", "path,label,"))
    assert [(row.path, row.label) for row in read_labels(file, FORMULAS)] == [*zip(FORMULAS, reversed(FORMULAS), strict=True)]


def test_the_card_shows_what_comes_from_files_as_text(tmp_path):
    hostile = "![x](http://evil)\x1b[2J www.evil.org @someone </table>\n# head"
    bundle = read_bundle(untrained_bundle(tmp_path, "CoOp", ["cat", "dog"]))
    measured = {"dataset": hostile, "split": hostile, "classes": hostile, "num_classes": 2, "num_images": 9}
    results = [{**measured, "accuracy": 1.0, "macro_f1": 1.0}]
    card = model_card(
        dataclasses.replace(bundle, classnames=[hostile], results=results, config=f"A: {hostile}", teacher=hostile)
    )
    assert "\x1b" not in card and "\n# head" not in card
    lines = [line for line in card.splitlines() if "evil" in line and not line.startswith("    ")]
    assert len(lines) == 3
    for line in lines:
        assert "http:" not in line and "www." not in line and "@someone" not in line and "![" not in line
        assert "<" not in line.replace("\\<", "").replace("<!-- -->", "")
