"""KDPL's trainers register beside a fork's, in either order."""

import sys
import textwrap

import pytest
from support import LEARNERS, processes


def run(code: str, tmp_path) -> str:
    process = processes.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


def test_both_trainers_of_every_learner_are_registered():
    from dassl.engine import TRAINER_REGISTRY

    import kdpl.trainers.baselines
    from kdpl import students

    for learner in LEARNERS:
        for name, package in ((f"KDPL_{learner}", kdpl.trainers), (learner, kdpl.trainers.baselines)):
            trainer = TRAINER_REGISTRY.get(name)
            assert trainer is getattr(package, name) and trainer.__name__ == name
            assert trainer.student_class is getattr(students, learner)
            assert trainer.distilled == name.startswith("KDPL_")


@pytest.mark.parametrize("part", ["forward_backward", "compute_loss", "features", "parse_batch_train", ""])
def test_a_trainer_whose_step_is_its_own_is_known_by_its_class(part):
    """It gets the pixels of all images; one that changes anything else does not need them."""
    import kdpl.trainers.baselines
    from kdpl.trainers.distill import has_own_step

    for trainer in (kdpl.trainers.KDPL_CoOp, kdpl.trainers.baselines.CoOp):
        assert not has_own_step(trainer)
        own = type("Own", (trainer,), {part or "after_epoch": lambda self, *_: None, "__module__": "forks"})
        assert has_own_step(own) == bool(part) == has_own_step(type("Further", (own,), {}))


@pytest.mark.slow
def test_a_name_that_a_fork_holds_stays_the_forks(tmp_path):
    """Before its import of kdpl.trainers or behind it, and without the baselines nothing has their names."""
    printed = run(
        """
        import kdpl
        from dassl.engine import TRAINER_REGISTRY, TrainerX

        @TRAINER_REGISTRY.register()
        class CoOp(TrainerX):
            pass

        import kdpl.trainers
        print(*sorted(TRAINER_REGISTRY.registered_names()))
        import kdpl.trainers.baselines
        print(TRAINER_REGISTRY.get("CoOp").__module__, TRAINER_REGISTRY.get("VPT").__module__)
        """,
        tmp_path,
    )
    assert printed.splitlines()[0].split() == ["CoOp", *(f"KDPL_{n}" for n in sorted(LEARNERS))]
    assert printed.splitlines()[1].split() == ["__main__", "kdpl.trainers.learners"]
