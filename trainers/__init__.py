"""Dassl trainers of KDPL; importing this package registers them. The supervised baselines are in `kdpl.trainers.baselines`."""

from kdpl.trainers.kdpl_cocoop import KDPL_CoCoOp
from kdpl.trainers.kdpl_coop import KDPL_CoOp
from kdpl.trainers.kdpl_ivlp import KDPL_IVLP
from kdpl.trainers.kdpl_maple import KDPL_MaPLe
from kdpl.trainers.kdpl_promptsrc import KDPL_PromptSRC
from kdpl.trainers.kdpl_vpt import KDPL_VPT

__all__ = ["KDPL_IVLP", "KDPL_VPT", "KDPL_CoCoOp", "KDPL_CoOp", "KDPL_MaPLe", "KDPL_PromptSRC"]
