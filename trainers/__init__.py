"""Dassl trainers of KDPL; importing this package registers them. The supervised baselines are in `kdpl.trainers.baselines`."""

from kdpl.config.defaults import explain_missing_nodes
from kdpl.trainers.kdpl import TRAINERS
from kdpl.trainers.learners import load_learners, prompt_learner
from kdpl.trainers.wrapped import distilled, offer_distilled

globals().update(TRAINERS)  # kdpl.trainers.KDPL_CoOp, ...
offer_distilled()
explain_missing_nodes()

__all__ = ["TRAINERS", "distilled", "load_learners", "prompt_learner"]
