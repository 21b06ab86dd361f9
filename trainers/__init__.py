"""Dassl trainers of KDPL; importing this package registers them. The supervised baselines are in `kdpl.trainers.baselines`."""

from kdpl.trainers.kdpl import TRAINERS
from kdpl.trainers.learners import load_learners, prompt_learner

globals().update(TRAINERS)  # kdpl.trainers.KDPL_CoOp, ...

__all__ = ["TRAINERS", "load_learners", "prompt_learner"]
