"""The supervised baselines and the zero-shot trainers; importing this module registers them. A fork has its own."""

from kdpl.trainers.kdpl import *  # noqa: F403  kdpl.trainers.baselines.CoOp, ...
from kdpl.trainers.registry import register_baselines
from kdpl.trainers.zeroshot import ZeroshotCLIP, ZeroshotCLIP2, ZeroshotTeacher  # noqa: F401

register_baselines()
