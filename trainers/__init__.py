"""Dassl trainers of KDPL; importing this package registers them. The supervised baselines are in `kdpl.trainers.baselines`."""

from kdpl.trainers.learners import *  # noqa: F403  kdpl.trainers.KDPL_CoOp, ...
from kdpl.trainers.learners import load_learners as load_learners
from kdpl.trainers.learners import prompt_learner as prompt_learner
from kdpl.trainers.offers import distilled as distilled
from kdpl.trainers.offers import offer_distilled as offer_distilled
