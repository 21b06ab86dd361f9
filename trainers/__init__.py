"""Dassl trainers of KDPL; importing this package registers them. The supervised baselines are in `kdpl.trainers.baselines`."""

from dassl.engine import TRAINER_REGISTRY

from kdpl.config.defaults import explain_missing_nodes
from kdpl.config.registries import refuse_wrong_order
from kdpl.trainers.kdpl import *  # noqa: F403  kdpl.trainers.KDPL_CoOp, ...
from kdpl.trainers.learners import load_learners, prompt_learner  # noqa: F401
from kdpl.trainers.offers import distilled, offer_distilled  # noqa: F401

refuse_wrong_order(TRAINER_REGISTRY, "kdpl.trainers", "Import kdpl.trainers.baselines after the fork's own trainers")
explain_missing_nodes()
