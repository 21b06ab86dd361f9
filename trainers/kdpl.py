"""The prompt trainers: `KDPL_<Name>` learns from a teacher without labels (arXiv:2407.03056), its twin `<Name>` from labels.

Importing this module registers the first ones; `kdpl.trainers.baselines` registers their twins, which a fork has itself.
"""

from kdpl import students
from kdpl.trainers.distill import DistillTrainer
from kdpl.trainers.registry import baseline, register
from kdpl.trainers.supervised import SupervisedTrainer


@register
class KDPL_CoOp(DistillTrainer):
    """Learns context tokens of the text prompt, without labels. Student: any CLIP."""

    student_class = students.CoOp


@baseline
class CoOp(SupervisedTrainer):
    """Learns what `KDPL_CoOp` does, from labels."""

    student_class = students.CoOp


@register
class KDPL_CoCoOp(DistillTrainer):
    """Learns context tokens and a small network that shifts them for each image, without labels. Student: any CLIP."""

    student_class = students.CoCoOp


@baseline
class CoCoOp(SupervisedTrainer):
    """Learns what `KDPL_CoCoOp` does, from labels."""

    student_class = students.CoCoOp


@register
class KDPL_VPT(DistillTrainer):
    """Learns tokens of the image tower, without labels. Student: ViT."""

    student_class = students.VPT


@baseline
class VPT(SupervisedTrainer):
    """Learns what `KDPL_VPT` does, from labels."""

    student_class = students.VPT


@register
class KDPL_MaPLe(DistillTrainer):
    """Learns deep text prompts and their projections to the image tower, without labels. Student: ViT."""

    student_class = students.MaPLe


@baseline
class MaPLe(SupervisedTrainer):
    """Learns what `KDPL_MaPLe` does, from labels."""

    student_class = students.MaPLe


@register
class KDPL_PromptSRC(DistillTrainer):
    """Learns deep text and image prompts, regularised and averaged, without labels. Student: ViT."""

    student_class = students.PromptSRC


@baseline
class PromptSRC(SupervisedTrainer):
    """Learns what `KDPL_PromptSRC` does, from labels."""

    student_class = students.PromptSRC


@register
class KDPL_IVLP(DistillTrainer):
    """Learns deep text and image prompts, without labels. Student: ViT."""

    student_class = students.IVLP


@baseline
class IVLP(SupervisedTrainer):
    """Learns what `KDPL_IVLP` does, from labels."""

    student_class = students.IVLP


@register
class KDPL_KgCoOp(DistillTrainer):
    """Learns context tokens, kept close to the hand-written sentence, without labels. Student: any CLIP."""

    student_class = students.KgCoOp


@baseline
class KgCoOp(SupervisedTrainer):
    """Learns what `KDPL_KgCoOp` does, from labels."""

    student_class = students.KgCoOp


@register
class KDPL_TaskRes(DistillTrainer):
    """Learns a vector for each class, for these class names alone, without labels. Student: any CLIP."""

    student_class = students.TaskRes


@baseline
class TaskRes(SupervisedTrainer):
    """Learns what `KDPL_TaskRes` does, from labels."""

    student_class = students.TaskRes


@register
class KDPL_TCP(DistillTrainer):
    """Learns context tokens, and a network that makes prompts for a later layer of each name's text feature, without labels.

    Student: any CLIP whose text tower is not of the Hugging Face hub.
    """

    student_class = students.TCP


@baseline
class TCP(SupervisedTrainer):
    """Learns what `KDPL_TCP` does, from labels."""

    student_class = students.TCP


@register
class KDPL_KernelHead(DistillTrainer):
    """Learns scores of the class names from frozen image features, in closed form, without labels. Student: any CLIP."""

    student_class = students.KernelHead


@baseline
class KernelHead(SupervisedTrainer):
    """Learns what `KDPL_KernelHead` does, from labels."""

    student_class = students.KernelHead


@register
class KDPL_MMA(DistillTrainer):
    """Learns adapters beside the last blocks of both towers, without labels. Student: ViT."""

    student_class = students.MMA


@baseline
class MMA(SupervisedTrainer):
    """Learns what `KDPL_MMA` does, from labels."""

    student_class = students.MMA


@register
class KDPL_CLIPAdapter(DistillTrainer):
    """Learns two layers over the frozen image feature, without labels. Student: any CLIP."""

    student_class = students.CLIPAdapter


@baseline
class CLIPAdapter(SupervisedTrainer):
    """Learns what `KDPL_CLIPAdapter` does, from labels."""

    student_class = students.CLIPAdapter
