"""KgCoOp (arXiv:2303.13283): CoOp with its text features kept close to those of the hand-written sentence."""

from collections.abc import Sequence

from torch import Tensor

from kdpl.students.base import Output
from kdpl.students.coop import CoOp


class KgCoOp(CoOp):
    """CoOp with W times the cosine distance of its text features to the frozen CLIP's in the loss."""

    node = "KGCOOP"
    defaults = {"N_CTX": 4, "CTX_INIT": "a photo of a", "PREC": "fp16", "W": 8.0}
    texts = {"W": "Weight of the distance to the hand-written sentence."}
    learns_class_specific = ""

    def regularisers(self, output: Output, frozen: Tensor | None, names: Sequence[str]) -> dict[str, Tensor]:
        """Return `loss_kg`: W times one minus the cosine (half the squared distance), averaged over the C names."""
        g, g0 = output.text_features, self.frozen_text_features(names)  # (C, d)
        return {"loss_kg": self.options.W * (1 - (g * g0).sum(-1)).mean()}
