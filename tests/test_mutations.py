"""The check in tests/mutations: what it names is there, and a mutation that is caught is told from one that is not."""

import ast
import sys

import pytest
from support import ROOT, processes

sys.path.insert(0, str(ROOT / "tests/mutations"))
from catalogue import MUTATIONS, located

sys.path.pop(0)


def defined(tree: ast.Module, target: str) -> bool:
    """Whether a module has a function, method or constant of this name."""
    body = tree.body
    *classes, name = target.split(".")
    for each in classes:
        body = next(node.body for node in body if isinstance(node, ast.ClassDef) and node.name == each)
    names = {node.name for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    return name in names | {
        t.id for node in body if isinstance(node, ast.Assign) for t in node.targets if isinstance(t, ast.Name)
    }


def test_what_is_mutated_and_every_test_exists():
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS) >= 40
    for mutation in MUTATIONS:
        tree = ast.parse((ROOT / mutation.file).read_text(encoding="utf-8"))
        assert defined(tree, mutation.target), f"{mutation.file}: {mutation.target}"
        ast.parse(mutation.wrong, mode="eval")
        for test in mutation.tests:
            file, name = located(test).split("[")[0].split("::")
            assert defined(ast.parse((ROOT / file).read_text(encoding="utf-8")), name), test


@pytest.mark.slow
def test_a_caught_mutation_is_told_from_one_that_survives():
    code = """
import sys; sys.path.insert(0, "tests/mutations")
import run
from catalogue import MUTATIONS, Mutation
test = ("test_distill::test_the_loss_is_the_mean_of_both_divergences",)
harmless = Mutation("harmless", "kdpl/distill/loss.py", "_both_ways", "lambda f: f", test)
absent = Mutation("absent", "kdpl/distill/loss.py", "no_such_name", "lambda f: f", test)
run.MUTATIONS = [m for m in MUTATIONS if m.name == "half of the divergence"] + [harmless, absent]
sys.exit(run.main([]))
"""
    process = processes.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert process.returncode == 1, process.stdout + process.stderr
    assert "| half of the divergence | `kdpl/distill/loss.py` | `tests/" in process.stdout
    assert "| harmless | `kdpl/distill/loss.py` | **nothing: it survives** |" in process.stdout
    assert "it cannot be applied: NameError" in process.stdout
