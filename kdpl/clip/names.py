"""The names of CLIPs, and what is known of a model by its name alone.

A name is one of
- an OpenAI model: "ViT-B/32", "RN50", ...: downloaded and checksummed by OpenAI's `clip` package;
- an embedded model: "emoji_student", "emoji_teacher" (see docs/benchmark.md);
- an open_clip architecture with a weights tag, "ViT-L-14:laion2b_s32b_b82k"; the tag may be left out if there is one choice;
- a checkpoint file of OpenAI's architecture: state dict (.pt, .safetensors) or JIT archive;
- an open_clip architecture with a checkpoint file, "ViT-H-14-quickgelu:/path/open_clip_pytorch_model.bin".
"""

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path

from kdpl.common.messages import did_you_mean

EMBEDDED = ("emoji_student", "emoji_teacher")
DEFAULT_TAGS = {"ViT-H-14-quickgelu": "dfn5b"}  # the paper's teacher


@dataclass(frozen=True)
class Architecture:
    """What must be known of a CLIP before it is loaded; the vision depth of a ResNet is 0."""

    resolution: int
    patch_size: int
    vision_width: int
    vision_depth: int
    text_width: int
    text_depth: int
    context_length: int
    embed_dim: int

    @property
    def is_vit(self) -> bool:
        return self.vision_depth > 0


OPENAI_MODELS = {
    "RN50": Architecture(224, 0, 64, 0, 512, 12, 77, 1024),
    "RN101": Architecture(224, 0, 64, 0, 512, 12, 77, 512),
    "RN50x4": Architecture(288, 0, 80, 0, 640, 12, 77, 640),
    "RN50x16": Architecture(384, 0, 96, 0, 768, 12, 77, 768),
    "RN50x64": Architecture(448, 0, 128, 0, 1024, 12, 77, 1024),
    "ViT-B/32": Architecture(224, 32, 768, 12, 512, 12, 77, 512),
    "ViT-B/16": Architecture(224, 16, 768, 12, 512, 12, 77, 512),
    "ViT-L/14": Architecture(224, 14, 1024, 24, 768, 12, 77, 768),
    "ViT-L/14@336px": Architecture(336, 14, 1024, 24, 768, 12, 77, 768),
}


class ModelNameError(ValueError):
    """A name is no CLIP that can be loaded."""


def resolve(name: str) -> tuple[str, str, str]:
    """Return the kind of a name ("openai", "file" or "open_clip"), its open_clip architecture, and tag or file."""
    if name in OPENAI_MODELS:
        return "openai", "", ""
    if name in EMBEDDED:
        folder = importlib.util.find_spec("kdpl.datasets").submodule_search_locations[0]
        return "file", "", str(Path(folder, "embedded", f"{name}.safetensors"))
    if os.path.isfile(os.path.expanduser(name)):
        return "file", "", os.path.expanduser(name)
    import open_clip

    architecture, _, weights = name.partition(":")
    if architecture not in open_clip.list_models():
        names = [*OPENAI_MODELS, *EMBEDDED, *open_clip.list_models()]
        raise ModelNameError(
            f"'{name}' is not an OpenAI CLIP model, an open_clip model or a file.{did_you_mean(architecture, names)} "
            f"OpenAI: {', '.join(OPENAI_MODELS)}; embedded: {', '.join(EMBEDDED)}; open_clip: MODEL:TAG or MODEL:FILE."
        )
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if not weights:
        weights = DEFAULT_TAGS.get(architecture) or (tags[0] if len(tags) == 1 else "")
        if not weights:
            raise ModelNameError(
                f"'{name}' has no single set of weights: write '{architecture}:TAG' with one of {', '.join(tags)}, "
                f"or '{architecture}:FILE' with a checkpoint."
            )
    elif weights not in tags:
        weights = os.path.expanduser(weights)
        if not os.path.isfile(weights):
            raise ModelNameError(
                f"'{weights}' in '{name}' is neither a file nor a weights tag of {architecture}."
                f"{did_you_mean(weights, tags)} Tags: {', '.join(tags) or 'none'}."
            )
    return "open_clip", architecture, weights
