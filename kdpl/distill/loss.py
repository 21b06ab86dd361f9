"""The distillation losses: KDPL's divergences (arXiv:2407.03056), others of the field by name, and any function."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from kdpl.config.keys import LOSSES

DKD_ALPHA, DKD_BETA = 1.0, 8.0  # of the target's part and of the others', in the code of the paper
Loss = str | Callable[[Tensor, Tensor], Tensor]


def check_loss(kind: Loss, temperature: float) -> None:
    """Refuse a loss that there is not, or a temperature that it cannot have.

    Raises:
        ValueError: the message names the value.
    """
    if not callable(kind) and kind not in LOSSES:
        raise ValueError(f"The loss (TRAINER.KDPL.LOSS) is '{kind}', expected a function or one of {', '.join(LOSSES)}.")
    if not 0 < temperature < math.inf:
        raise ValueError(f"The temperature (TRAINER.KDPL.TEMPERATURE) is {temperature}, expected a number above 0.")


def distillation_loss(
    student_logits: Tensor, teacher_logits: Tensor, kind: Loss = "symmetric", temperature: float = 1.0
) -> dict[str, Tensor]:
    """Return the loss of the student's distribution against the teacher's over the same class names.

    Args:
        student_logits, teacher_logits: `(B, C)`; the softmaxes and the loss are computed in fp32.
        kind: "symmetric" 0.5 KL(T||S) + 0.5 KL(S||T), "forward" KL(T||S), "reverse" KL(S||T), "dkd" (`decoupled`), "argmax"
            cross-entropy to the teacher's likeliest name, or a function of both logits that returns a scalar or `(B,)`.
        temperature: divides both logits; the loss is multiplied by its square, which keeps the scale of the gradients
            (Hinton et al., arXiv:1503.02531). "forward" with it is the loss of that paper. "argmax" has none.

    Returns:
        Scalars `loss`, `loss_kl_forward`, `loss_kl_reverse`; the last two are sums over C and means over B.

    Raises:
        ValueError: an unknown kind, shapes that disagree, or a function that returns something else.
    """
    forward, reverse = _both_ways(student_logits, teacher_logits, temperature)
    if kind in ("symmetric", "forward", "reverse"):
        forward, reverse = forward.mean() * temperature**2, reverse.mean() * temperature**2
        loss = {"symmetric": 0.5 * forward + 0.5 * reverse, "forward": forward, "reverse": reverse}[kind]
    else:
        loss = _other(student_logits, teacher_logits, kind, temperature).mean()
        forward, reverse = (each.detach().mean() * temperature**2 for each in (forward, reverse))
    return {"loss": loss, "loss_kl_forward": forward, "loss_kl_reverse": reverse}


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


def divergences(student_logits: Tensor, teacher_logits: Tensor, kind: Loss = "symmetric", temperature: float = 1.0) -> Tensor:
    """Return the loss of each row, `(B,)`, whose mean is `distillation_loss`; arguments and errors are the same."""
    if kind in ("symmetric", "forward", "reverse"):
        forward, reverse = _both_ways(student_logits, teacher_logits, temperature)
        loss = {"symmetric": 0.5 * forward + 0.5 * reverse, "forward": forward, "reverse": reverse}[kind]
        return loss * temperature**2
    return _other(student_logits, teacher_logits, kind, temperature)


def decoupled(
    student_logits: Tensor, teacher_logits: Tensor, alpha: float = DKD_ALPHA, beta: float = DKD_BETA, temperature: float = 4.0
) -> Tensor:
    """Return the loss of each row, `(B,)`, of decoupled knowledge distillation (Zhao et al., arXiv:2203.08679).

    The target is the teacher's likeliest name, as there are no labels. The first part compares the probability of the target,
    the second the distributions over all other names.
    """
    log_s, log_t = (F.log_softmax(logits.float() / temperature, dim=-1) for logits in (student_logits, teacher_logits))
    target = teacher_logits.argmax(-1, keepdim=True)  # (B, 1)
    is_target = torch.zeros_like(log_s, dtype=torch.bool).scatter_(1, target, True)
    parts = []
    for log_p in (log_s, log_t):
        rest = log_p.masked_fill(is_target, -math.inf).logsumexp(-1, keepdim=True)  # log of the others' probability
        others = (log_p - rest).masked_fill(is_target, 0)  # their distribution; the target adds nothing
        parts.append((torch.cat([log_p.gather(1, target), rest], dim=-1), others))
    (two_s, others_s), (two_t, others_t) = parts
    of_target = (two_t.exp() * (two_t - two_s)).sum(-1)
    of_others = (others_t.exp() * (others_t - others_s)).sum(-1)
    return (alpha * of_target + beta * of_others) * temperature**2


def _other(student_logits: Tensor, teacher_logits: Tensor, kind: Loss, temperature: float) -> Tensor:
    """Return the loss of each row, `(B,)`, or of a function what it returns."""
    if kind == "dkd":
        return decoupled(student_logits, teacher_logits, temperature=temperature)
    if kind == "argmax":
        return F.cross_entropy(student_logits.float(), teacher_logits.argmax(-1), reduction="none")
    check_loss(kind, temperature)
    assert callable(kind)
    loss = kind(student_logits / temperature, teacher_logits / temperature) * temperature**2
    if not isinstance(loss, Tensor) or loss.shape not in ((), student_logits.shape[:1]):
        shape = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise ValueError(
            f"The loss function returned {shape}, expected a scalar or one value a row, {tuple(student_logits.shape[:1])}."
        )
    return loss


def _both_ways(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return KL(T||S) and KL(S||T) of each row, `(B,)`."""
    if student_logits.shape != teacher_logits.shape:
        raise ValueError(
            f"Student logits {tuple(student_logits.shape)} and teacher logits {tuple(teacher_logits.shape)} differ."
        )
    log_s = F.log_softmax(student_logits.float() / temperature, dim=-1)
    log_t = F.log_softmax(teacher_logits.float() / temperature, dim=-1)
    difference = log_t - log_s  # (B, C)
    return (log_t.exp() * difference).sum(-1), (log_s.exp() * -difference).sum(-1)
