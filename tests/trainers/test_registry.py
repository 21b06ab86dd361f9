"""KDPL's trainers register beside a fork's, in either order."""

import ast
import sys
import textwrap

import pytest
from support import LEARNERS, ROOT, processes


def run(code: str, tmp_path) -> str:
    process = processes.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


@pytest.mark.parametrize("learner", LEARNERS)
def test_both_trainers_of_a_learner_are_written_out_and_registered(learner):
    """`grep "class KDPL_CoOp" trainers` finds the one, and its twin below it; a docstring says what is learned."""
    from dassl.engine import TRAINER_REGISTRY

    import kdpl.trainers.baselines
    from kdpl import students
    from kdpl.trainers.distill import DistillTrainer
    from kdpl.trainers.supervised import SupervisedTrainer

    tree = ast.parse((ROOT / "trainers/kdpl.py").read_text(encoding="utf-8"))
    written = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    for name, base, package in (
        (f"KDPL_{learner}", DistillTrainer, kdpl.trainers),
        (learner, SupervisedTrainer, kdpl.trainers.baselines),
    ):
        assert written[name].bases[0].id == base.__name__ and "earns " in ast.get_docstring(written[name])
        trainer = TRAINER_REGISTRY.get(name)
        assert trainer is getattr(package, name)
        assert trainer.__bases__ == (base,) and trainer.student_class is getattr(students, learner)


def test_a_trainer_is_one_short_chain_of_classes():
    from kdpl.trainers import KDPL_CoOp
    from kdpl.trainers.registry import is_ours

    ours = [ancestor.__name__ for ancestor in KDPL_CoOp.__mro__ if is_ours(ancestor)]
    assert ours == ["KDPL_CoOp", "DistillTrainer", "PromptTrainer", "EvaluatedTrainer"]
    assert all(len(ancestor.__bases__) == 1 for ancestor in KDPL_CoOp.__mro__[:-1]), "no mixins"


@pytest.mark.parametrize("part", ["forward_backward", "compute_loss", "features", "parse_batch_train", "images", ""])
def test_a_trainer_whose_step_is_its_own_is_known_by_its_class(part):
    """It gets the pixels of all images; one that changes anything else does not need them."""
    import kdpl.trainers.baselines
    from kdpl.trainers.prompts import has_own_step

    for trainer in (kdpl.trainers.KDPL_CoOp, kdpl.trainers.baselines.CoOp):
        assert not has_own_step(trainer)
        own = type("Own", (trainer,), {part or "after_epoch": lambda self, *_: None, "__module__": "forks"})
        assert has_own_step(own) == bool(part) == has_own_step(type("Further", (own,), {}))


@pytest.mark.slow
def test_a_name_that_a_fork_holds_stays_the_forks(tmp_path):
    printed = run(
        """
        import kdpl
        from dassl.engine import TRAINER_REGISTRY, TrainerX

        @TRAINER_REGISTRY.register()
        class CoOp(TrainerX):
            pass

        import kdpl.trainers, kdpl.trainers.baselines
        print(TRAINER_REGISTRY.get("CoOp").__module__, TRAINER_REGISTRY.get("KDPL_CoOp").__module__)
        """,
        tmp_path,
    )
    assert printed.split() == ["__main__", "kdpl.trainers.kdpl"]


@pytest.mark.slow
def test_importing_the_kdpl_trainers_leaves_the_baselines_to_the_fork(tmp_path):
    printed = run(
        """
        import kdpl.trainers
        from dassl.engine import TRAINER_REGISTRY
        print(*sorted(TRAINER_REGISTRY.registered_names()))
        """,
        tmp_path,
    )
    assert printed.split() == [f"KDPL_{n}" for n in sorted(LEARNERS)]


@pytest.mark.slow
def test_a_file_copied_into_a_forks_own_folder_takes_the_place_of_the_installed_one(tmp_path):
    (tmp_path / "trainers").mkdir()
    source = (ROOT / "trainers" / "kdpl.py").read_text()
    (tmp_path / "trainers" / "kdpl.py").write_text(source)
    printed = run(
        """
        import sys; sys.path.insert(0, "")
        import kdpl
        import trainers.kdpl
        from dassl.engine import TRAINER_REGISTRY
        print(TRAINER_REGISTRY.get("KDPL_CoOp").__module__)
        """,
        tmp_path,
    )
    assert printed.split() == ["trainers.kdpl"]


@pytest.mark.slow
def test_an_installed_dassl_wins_over_the_bundled_one(tmp_path):
    (tmp_path / "dassl").mkdir()
    (tmp_path / "dassl" / "__init__.py").write_text("")
    code = """
        import sys; sys.path.insert(0, "")
        import kdpl, dassl
        print(kdpl.dassl_in_use())
        """
    assert run(code, tmp_path).strip() == f"Dassl: installed, {tmp_path / 'dassl'}"


@pytest.mark.slow
def test_a_source_checkout_that_is_not_installed_has_its_trainers_and_data_sets(tmp_path):
    """As where `python train.py` puts the checkout before an installed copy."""
    code = f"""
        import sys
        sys.meta_path = [f for f in sys.meta_path if "__editable__" not in type(f).__module__ + getattr(f, "__module__", "")]
        sys.path.insert(0, {str(ROOT)!r})
        import kdpl.trainers, kdpl.datasets
        print(kdpl.trainers.__file__, kdpl.datasets.__file__)
        """
    assert run(code, tmp_path).split() == [str(ROOT / name / "__init__.py") for name in ("trainers", "datasets")]
