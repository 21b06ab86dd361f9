"""Registers the supervised baselines and the zero-shot trainers; a fork has its own, which are left alone."""

from kdpl.trainers.cocoop import CoCoOp
from kdpl.trainers.coop import CoOp
from kdpl.trainers.ivlp import IVLP
from kdpl.trainers.maple import MaPLe
from kdpl.trainers.promptsrc import PromptSRC
from kdpl.trainers.vpt import VPT
from kdpl.trainers.zeroshot import ZeroshotCLIP, ZeroshotCLIP2, ZeroshotTeacher

__all__ = [
    "IVLP",
    "VPT",
    "CoCoOp",
    "CoOp",
    "MaPLe",
    "PromptSRC",
    "ZeroshotCLIP",
    "ZeroshotCLIP2",
    "ZeroshotTeacher",
]
