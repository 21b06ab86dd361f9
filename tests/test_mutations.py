"""The check in tests/mutations: it fits the code as it stands, and tells a mutation that is caught from one that is not."""

import ast
import sys

import pytest
from support import ROOT, processes

from kdpl import students

FOLDER = ROOT / "tests/mutations"
DIVERGENCE = "tests/test_distill.py::test_forward_and_reverse_choose_one_divergence"


@pytest.fixture
def mutations(monkeypatch):
    """The modules `run` and `catalogue`, which have plain names."""
    monkeypatch.syspath_prepend(str(FOLDER))
    for name in ("run", "catalogue"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import run

    yield run
    for name in ("run", "catalogue"):
        sys.modules.pop(name, None)


def test_every_text_stands_once_and_every_test_exists(mutations):
    tests = {}
    assert len(mutations.MUTATIONS) >= 12
    assert len({mutation.name for mutation in mutations.MUTATIONS}) == len(mutations.MUTATIONS)
    for mutation in mutations.MUTATIONS:
        for path, text in mutations.mutated(ROOT, mutation).items():
            assert text != path.read_text(encoding="utf-8")
            assert path.suffix != ".py" or ast.parse(text)
        for test in mutation.tests:
            file, name = test.split("[")[0].split("::")
            if file not in tests:
                tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
                tests[file] = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
            assert name in tests[file], test


def test_a_label_is_put_into_the_step_of_every_learner(mutations):
    names = {mutation.name for mutation in mutations.MUTATIONS}
    assert {f"a label in the step of {learner.__name__}" for learner in students.LEARNERS} <= names


def test_a_text_that_is_not_found_and_an_unknown_name_are_refused(mutations, capsys):
    old = mutations.Mutation("an old one", (("kdpl/distill/loss.py", "a text of long ago", ""),), ("tests/test_distill.py",))
    assert mutations.main([], [old]) == 2
    assert "'an old one': kdpl/distill/loss.py has the text 0 times, expected once" in capsys.readouterr().err
    assert mutations.main(["no such"], [old]) == 2
    assert "There is no mutation 'no such'" in capsys.readouterr().err


@pytest.mark.slow
def test_some_mutations_are_caught():
    command = [sys.executable, "tests/mutations/run.py", "a reversed KL", "the K names"]
    process = processes.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert process.returncode == 0, process.stdout + process.stderr
    assert process.stdout.count("| `tests/") == 2
    assert "2 of 2 mutations are caught, 0 survive" in process.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("test", "status", "message"),
    [
        (DIVERGENCE, 1, "| a comment | `kdpl/distill/loss.py` | **nothing: it survives** |"),
        (f"{DIVERGENCE}_or_three", 2, "Without a mutation the tests cannot be run"),
        (
            "tests/test_precision.py::test_it_trains_and_tests_as_in_fp32[CoOp-cpu-amp]",
            2,
            "not tried: its tests are skipped here",
        ),
    ],
)
def test_a_mutation_that_no_test_catches_and_a_test_that_cannot_be_run_are_reported(test, status, message):
    code = f"""
import sys; sys.path.insert(0, {str(FOLDER)!r})
import run
change = ("kdpl/distill/loss.py", "difference = log_t - log_s  # (B, C)", "difference = log_t - log_s")
sys.exit(run.main([], [run.Mutation("a comment", (change,), ({test!r},))]))
"""
    process = processes.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=300)
    assert process.returncode == status, process.stdout + process.stderr
    assert message in process.stdout + process.stderr
