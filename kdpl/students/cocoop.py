"""CoCoOp (arXiv:2203.05557): a small net shifts the context tokens by each image's feature."""

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn
from yacs.config import CfgNode

from kdpl.clips import Clip
from kdpl.students.base import Student, TextContext, normalized_text
from kdpl.text import PromptLayout


class CoCoOp(Student):
    """Learns `ctx (n_ctx, w_t)` and `meta_net`: Linear(d, d // 16), ReLU, Linear(d // 16, w_t)."""

    node = "COCOOP"
    image_features_are_frozen = True
    reads_frozen_image_features = True
    text_depends_on_images = True

    def __init__(self, clip: Clip, options: CfgNode):
        super().__init__(clip, options)
        self.context = TextContext(clip, options.CTX_INIT, options.N_CTX, False)
        self.learned.ctx = nn.Parameter(self.context.initial())
        d = clip.text.embed_dim
        self.learned.meta_net = nn.Sequential(
            OrderedDict(
                linear1=nn.Linear(d, d // 16),
                relu=nn.ReLU(),
                linear2=nn.Linear(d // 16, clip.text.width),
            )
        )

    def prepare(self, names: Sequence[str]) -> PromptLayout:
        return self.context.layout(names)

    def text_features(self, prepared: PromptLayout, image_features: Tensor | None = None) -> Tensor:
        shift = self.learned.meta_net(image_features)  # (B, w_t)
        ctx = self.learned.ctx + shift[:, None]  # (B, n_ctx, w_t)
        return normalized_text(self.clip.text(prepared, ctx))
