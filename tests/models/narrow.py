"""timm's image towers in a small size, under names of their own."""

import re

import timm
from timm.models.vitamin import VitCfg, VitConvCfg

WIDTH = 128  # of the ViTs, two heads
LAYERS = 3  # of the ViTs: deep prompts are replaced at a middle layer and at the last
STEM = VitCfg(  # ViTamin's convolutions
    embed_dim=(16, 32, WIDTH),
    depths=(1, 1, 1),
    stem_width=16,
    conv_cfg=VitConvCfg(norm_layer="layernorm2d", norm_eps=1e-6),
    head_type="1d",
)
NARROW = {"depth": LAYERS, "embed_dim": WIDTH, "num_heads": 2}
CONVOLUTIONAL = ("convnext", "fastvit")  # they take images of any size
SIZES = {  # by the beginning of the name; of all others NARROW
    "convnext": {"depths": (2, 2, 2, 2), "dims": (32, 64, 128, 256)},
    "swin": {"depths": (2, 2, 2, 2)},
    "fastvit_mci3": {"layers": (1, 1, 1, 1, 2)},
    "fastvit_mci4": {"layers": (1, 1, 1, 1, 2)},
    "fastvit": {"layers": (1, 1, 1, 2)},
    "vit_base_mci": {"depth": LAYERS},
    "vitamin": {**NARROW, "embed_cfg": STEM},
}


def side(name: str) -> int:
    """Return the side of the images of a small model, four patches of a ViT; 0 for one that keeps its own."""
    patch = re.search(r"patch(\d+)_(?!window|cls)", name)
    return 4 * int(patch[1]) if patch else 64 if name.startswith(("vitamin", "vit_base_mci", *CONVOLUTIONAL)) else 0


def narrow(name: str) -> str:
    """Return the name under which timm now knows a model in a small size."""
    options = next((options for start, options in SIZES.items() if name.startswith(start)), NARROW)
    if side(name) and not name.startswith(CONVOLUTIONAL):
        options = {**options, "img_size": side(name)}
    make = timm.model_entrypoint(name)

    def small(pretrained: bool = False, **kwargs):
        return make(pretrained=False, **{**kwargs, **options})

    small.__name__, small.__module__ = f"narrow_{name}", make.__module__
    if not timm.is_model(small.__name__):
        timm.models.register_model(small)
    return small.__name__
