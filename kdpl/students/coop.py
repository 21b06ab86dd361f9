"""CoOp (arXiv:2109.01134): learned context tokens before, around or behind the class name."""

from collections.abc import Sequence

from torch import Tensor, nn
from yacs.config import CfgNode

from kdpl.clips import Architecture, Clip
from kdpl.prompts import POSITIONS
from kdpl.students.base import Student, TextContext, normalized_text
from kdpl.suggest import did_you_mean
from kdpl.text import PromptLayout


class CoOp(Student):
    """Learns `ctx (n_ctx, w_t)`, or `(C, n_ctx, w_t)` with class-specific context (CSC)."""

    node = "COOP"
    image_features_are_frozen = True
    reads_frozen_image_features = True

    def __init__(self, clip: Clip, options: CfgNode, classes: int | None = None):
        super().__init__(clip, options)
        self.context = TextContext(clip, options.CTX_INIT, options.N_CTX, False, options.CLASS_TOKEN_POSITION)
        self.learned.ctx = nn.Parameter(self.context.initial(classes if options.CSC else None))

    @classmethod
    def build(cls, clip: Clip, options: CfgNode, names: Sequence[str]) -> "CoOp":
        return cls(clip, options, len(names))

    @classmethod
    def check(cls, options: CfgNode, architecture: Architecture, name: str) -> None:
        super().check(options, architecture, name)
        position = options.CLASS_TOKEN_POSITION
        if position not in POSITIONS:
            raise ValueError(
                f"TRAINER.COOP.CLASS_TOKEN_POSITION '{position}' is not one of {', '.join(POSITIONS)}."
                f"{did_you_mean(position, POSITIONS)}"
            )

    def prepare(self, names: Sequence[str]) -> PromptLayout:
        if self.options.CSC and len(names) != len(self.learned.ctx):
            raise ValueError(
                f"TRAINER.COOP.CSC True learned a context for each of {len(self.learned.ctx)} classes and has none for a list "
                f"of {len(names)}: class-specific context needs the classes it was trained on. Set CSC False."
            )
        return self.context.layout(names, self.options.CSC)

    def text_features(self, prepared: PromptLayout, image_features: Tensor | None = None) -> Tensor:
        return normalized_text(self.clip.text(prepared, self.learned.ctx))
