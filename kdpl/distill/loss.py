"""The distillation loss (KDPL, arXiv:2407.03056)."""

import torch.nn.functional as F
from torch import Tensor

from kdpl.config.choices import LOSSES


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
    if kind not in LOSSES:
        raise ValueError(f"TRAINER.KDPL.LOSS '{kind}' is not one of {', '.join(LOSSES)}.")
    if student_logits.shape != teacher_logits.shape:
        raise ValueError(
            f"Student logits {tuple(student_logits.shape)} and teacher logits {tuple(teacher_logits.shape)} differ."
        )
    log_s = F.log_softmax(student_logits.float() / temperature, dim=-1)
    log_t = F.log_softmax(teacher_logits.float() / temperature, dim=-1)
    difference = log_t - log_s  # (B, C)
    forward = (log_t.exp() * difference).sum(-1).mean() * temperature**2
    reverse = (log_s.exp() * -difference).sum(-1).mean() * temperature**2
    loss = {"symmetric": 0.5 * forward + 0.5 * reverse, "forward": forward, "reverse": reverse}[kind]
    return {"loss": loss, "loss_kl_forward": forward, "loss_kl_reverse": reverse}
