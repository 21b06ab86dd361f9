"""The distillation loss (KDPL, arXiv:2407.03056)."""

import math

import torch.nn.functional as F
from torch import Tensor

from kdpl.config.keys import LOSSES


def distillation_loss(
    student_logits: Tensor, teacher_logits: Tensor, kind: str = "symmetric", temperature: float = 1.0
) -> dict[str, Tensor]:
    """Return the divergence between the student's and the teacher's distribution over the same class names.

    Args:
        student_logits, teacher_logits: `(B, C)`; the softmaxes and the loss are computed in fp32.
        kind: "symmetric" 0.5 KL(T||S) + 0.5 KL(S||T), "forward" KL(T||S) or "reverse" KL(S||T).
        temperature: divides both logits; the loss is multiplied by its square, which keeps the scale of the gradients
            (Hinton et al., arXiv:1503.02531).

    Returns:
        Scalars `loss`, `loss_kl_forward`, `loss_kl_reverse`: sums over C, means over B.

    Raises:
        ValueError: an unknown kind, or shapes that disagree.
    """
    forward, reverse = _both_ways(student_logits, teacher_logits, kind, temperature)
    forward, reverse = forward.mean() * temperature**2, reverse.mean() * temperature**2
    return {"loss": _combine(kind, forward, reverse), "loss_kl_forward": forward, "loss_kl_reverse": reverse}


def mean_logits(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Return logits `(B, C)` whose softmax at a temperature is the mean of several teachers' softmaxes at it.

    Args:
        logits: of M teachers over the same names, `(M, B, C)`; those of one, `(B, C)`, are returned as they are.
        temperature: that both, these logits and the returned ones, are to be divided by.
    """
    if logits.dim() == 2:
        return logits
    log_p = F.log_softmax(logits.float() / temperature, dim=-1)  # (M, B, C)
    return temperature * (log_p.logsumexp(0) - math.log(len(logits)))


def divergences(student_logits: Tensor, teacher_logits: Tensor, kind: str = "symmetric", temperature: float = 1.0) -> Tensor:
    """Return the loss of each row, `(B,)`, whose mean is `distillation_loss`; arguments and errors are the same."""
    forward, reverse = _both_ways(student_logits, teacher_logits, kind, temperature)
    return _combine(kind, forward, reverse) * temperature**2


def _both_ways(student_logits: Tensor, teacher_logits: Tensor, kind: str, temperature: float) -> tuple[Tensor, Tensor]:
    """Return KL(T||S) and KL(S||T) of each row, `(B,)`."""
    if kind not in LOSSES:
        raise ValueError(f"TRAINER.KDPL.LOSS '{kind}' is not one of {', '.join(LOSSES)}.")
    if student_logits.shape != teacher_logits.shape:
        raise ValueError(
            f"Student logits {tuple(student_logits.shape)} and teacher logits {tuple(teacher_logits.shape)} differ."
        )
    log_s = F.log_softmax(student_logits.float() / temperature, dim=-1)
    log_t = F.log_softmax(teacher_logits.float() / temperature, dim=-1)
    difference = log_t - log_s  # (B, C)
    return (log_t.exp() * difference).sum(-1), (log_s.exp() * -difference).sum(-1)


def _combine(kind: str, forward: Tensor, reverse: Tensor) -> Tensor:
    return {"symmetric": 0.5 * forward + 0.5 * reverse, "forward": forward, "reverse": reverse}[kind]
