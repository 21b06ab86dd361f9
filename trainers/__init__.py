"""Dassl trainers of KDPL; importing this package registers them. The supervised baselines are in `kdpl.trainers.baselines`."""

from dassl.engine import TRAINER_REGISTRY

from kdpl.config.defaults import explain_missing_nodes
from kdpl.config.registries import refuse_wrong_order
from kdpl.trainers.kdpl import TRAINERS
from kdpl.trainers.learners import load_learners, prompt_learner
from kdpl.trainers.offers import distilled, offer_distilled

globals().update(TRAINERS)  # kdpl.trainers.KDPL_CoOp, ...
refuse_wrong_order(TRAINER_REGISTRY, "kdpl.trainers", "Import kdpl.trainers.baselines after the fork's own trainers")
explain_missing_nodes()

__all__ = ["TRAINERS", "distilled", "load_learners", "offer_distilled", "prompt_learner"]
