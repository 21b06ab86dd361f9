"""CoCoOp (arXiv:2203.05557): a small network shifts the context tokens for each image."""

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn

from kdpl.clip.model import normalized
from kdpl.clip.prompt_layout import Layout
from kdpl.students.base import Student
from kdpl.students.pieces import TextContext


class CoCoOp(Student):
    """Learns `ctx (n_ctx, w_t)` and `meta_net`: Linear(d, d // 16), ReLU, Linear(d // 16, w_t)."""

    node = "COCOOP"
    defaults = {"N_CTX": 16, "CTX_INIT": "", "PREC": "fp16"}
    image_features_are_frozen = True
    text_depends_on_images = True

    def build(self, names: Sequence[str]) -> None:
        self.context = TextContext(self.clip, self.options.CTX_INIT, self.options.N_CTX, False)
        self.learned.ctx = nn.Parameter(self.context.initial())
        d, w_t = self.clip.text.embed_dim, self.clip.text.width
        layers = OrderedDict(linear1=nn.Linear(d, d // 16), relu=nn.ReLU(), linear2=nn.Linear(d // 16, w_t))
        self.learned.meta_net = nn.Sequential(layers)

    def text_features(self, prepared: Layout, image_features: Tensor | None = None) -> Tensor:
        shift = self.learned.meta_net(image_features)  # (B, w_t)
        ctx = self.learned.ctx + shift[:, None]  # (B, n_ctx, w_t)
        return normalized(self.clip.text(prepared, ctx))
