"""Prompt learners: what each of them learns, and how it turns images and class names into logits."""

from kdpl.students.base import Output, Student
from kdpl.students.clip_adapter import CLIPAdapter
from kdpl.students.cocoop import CoCoOp
from kdpl.students.coop import CoOp
from kdpl.students.ivlp import IVLP
from kdpl.students.kernel_head import KernelHead
from kdpl.students.kgcoop import KgCoOp
from kdpl.students.maple import MaPLe
from kdpl.students.mma import MMA
from kdpl.students.promptsrc import PromptSRC
from kdpl.students.taskres import TaskRes
from kdpl.students.tcp import TCP
from kdpl.students.vpt import VPT

Learners = tuple[type[Student], ...]
LEARNERS: Learners = (CoOp, CoCoOp, VPT, MaPLe, PromptSRC, IVLP, KgCoOp, TaskRes, TCP, KernelHead, MMA, CLIPAdapter)
STEPPED = tuple(learner for learner in LEARNERS if not learner.closed_form)  # those that are learned in steps along a gradient

__all__ = [
    "IVLP",
    "LEARNERS",
    "MMA",
    "STEPPED",
    "TCP",
    "VPT",
    "CLIPAdapter",
    "CoCoOp",
    "CoOp",
    "KernelHead",
    "KgCoOp",
    "MaPLe",
    "Output",
    "PromptSRC",
    "Student",
    "TaskRes",
]
