"""The names of CLIPs, and what is known of a model by its name alone.

A name is one of
- an OpenAI model: "ViT-B/32", "RN50", ...: downloaded and checksummed by OpenAI's `clip` package;
- an embedded model: "emoji_student", "emoji_teacher" (see docs/benchmark.md);
- an open_clip architecture with a weights tag, "ViT-L-14:laion2b_s32b_b82k"; the tag may be left out if there is one choice;
- the same with a file of these weights, "ViT-L-14:laion2b_s32b_b82k:/path/open_clip_pytorch_model.bin";
- an open_clip architecture with a file, "ViT-H-14-378:/path/weights.bin", if the file or all tags of the architecture agree on
  activation and preprocessing;
- a folder as the Hugging Face hub has it, with open_clip_config.json and weights;
- a file in such a folder;
- a checkpoint file of a size that OpenAI has published, with OpenAI's activation: state dict (.pt, .safetensors) or JIT
  archive; or of a size that TinyCLIP has, with TinyCLIP's;
- "openai:/path/weights.pt", a file of OpenAI's layout in any size: QuickGELU, heads of 64, OpenAI's preprocessing.
"""

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path

from kdpl.clip.inputs import OPENAI_MEAN, OPENAI_STD, Preprocessing
from kdpl.clip.names.folders import hub_folder, source_of_file, source_of_folder, weights_in
from kdpl.clip.names.sources import ModelNameError, Source
from kdpl.clip.names.suggestions import for_model, for_tag

EMBEDDED = ("emoji_student", "emoji_teacher")
DEFAULT_TAGS = {"ViT-H-14-quickgelu": "dfn5b"}  # the paper's teacher
DECLARED = "openai:"


@dataclass(frozen=True)
class Architecture:
    """What must be known of a CLIP before it is loaded; the vision depth of a tower that takes no learned tokens is 0.

    `no_text_context` and `no_deep_text` say why its text tower takes no learned context, at its input or at later layers;
    empty if it does.
    """

    resolution: int
    patch_size: int
    vision_width: int
    vision_depth: int
    text_width: int
    text_depth: int
    context_length: int
    embed_dim: int
    interpolation: str = "bicubic"
    mean: tuple[float, ...] = OPENAI_MEAN
    std: tuple[float, ...] = OPENAI_STD
    resize_mode: str = "shortest"
    no_text_context: str = ""
    no_deep_text: str = ""

    @property
    def is_vit(self) -> bool:
        return self.vision_depth > 0

    @property
    def preprocessing(self) -> Preprocessing:
        return Preprocessing((self.resolution,) * 2, self.interpolation, self.mean, self.std, self.resize_mode)


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


def resolve(name: str) -> Source:
    """Return where the CLIP of a name comes from.

    Raises:
        ModelNameError: no such model; the message names the closest.
    """
    if name in OPENAI_MODELS:
        return Source("openai")
    if name in EMBEDDED:
        folder = importlib.util.find_spec("kdpl.datasets").submodule_search_locations[0]
        return Source("file", tag="openai", path=str(Path(folder, "embedded", f"{name}.safetensors")))
    path = Path(os.path.expanduser(name))
    if path.is_file():
        return source_of_file(path)
    if path.is_dir():
        return source_of_folder(path)
    if name.startswith(DECLARED):
        return _declared(name)
    return _resolve_open_clip(name)


def _declared(name: str) -> Source:
    path = os.path.expanduser(name.removeprefix(DECLARED))
    if not os.path.isfile(path):
        raise ModelNameError(f"There is no file '{path}', which '{name}' names: expected {DECLARED}FILE.")
    return Source("file", tag="openai", path=path)


def _resolve_open_clip(name: str) -> Source:
    import open_clip

    architecture, _, rest = name.partition(":")
    if architecture not in open_clip.list_models():
        names = [*OPENAI_MODELS, *EMBEDDED, *open_clip.list_models()]
        raise ModelNameError(
            f"'{name}' is not an OpenAI CLIP model, an open_clip model or a file.{for_model(name, names)} "
            f"OpenAI: {', '.join(OPENAI_MODELS)}; embedded: {', '.join(EMBEDDED)}; open_clip: MODEL:TAG or MODEL:TAG:FILE."
        )
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if not rest:
        tag = DEFAULT_TAGS.get(architecture) or (tags[0] if len(tags) == 1 else "")
        if not tag:
            way = f"write '{architecture}:TAG' with one of {', '.join(tags)}, or '{architecture}:TAG:FILE' with its file."
            if not tags:
                way = f"none is published, write '{architecture}:FILE' with a checkpoint."
            raise ModelNameError(f"'{name}' has no single set of weights: {way}")
        return Source("open_clip", architecture, tag)
    if rest in tags:
        return Source("open_clip", architecture, rest)
    tag, colon, file = rest.partition(":")
    if not colon or tag not in tags:
        tag, file = "", rest
    path = Path(os.path.expanduser(file))
    if path.is_dir():
        path = weights_in(hub_folder(path))
    if not path.is_file():
        raise ModelNameError(
            f"'{file}' in '{name}' is neither a file nor a weights tag of {architecture}.{for_tag(architecture, file, tags)} "
            f"Tags: {', '.join(tags) or 'none'}."
        )
    return Source("open_clip", architecture, tag, str(path))
