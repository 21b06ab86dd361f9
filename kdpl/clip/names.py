"""The names of CLIPs (docs/models.md), and what is known of a model by its name alone. A name is one of

- an OpenAI model, "ViT-B/32", or an embedded one, "emoji_student";
- an open_clip architecture with a weights tag, and a file of these weights, "ViT-L-14:laion2b_s32b_b82k:/path/weights.bin"; the
  tag may be left out if there is one choice, or none is published;
- "openai:/path/weights.pt", a file of OpenAI's design in any size: QuickGELU, heads of 64, OpenAI's preprocessing;
- a folder with the configuration of open_clip or transformers and weights, "./clip" or "local-dir:clip";
- "hf-hub:OWNER/NAME", such a folder on the Hugging Face hub.

The name of a model is that model, whatever folder is called so.
"""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from kdpl.clip.preprocessing import Preprocessing
from kdpl.common.messages import did_you_mean, short_reason

EMBEDDED = ("emoji_student", "emoji_teacher")
DEFAULT_TAGS = {"ViT-H-14-quickgelu": "dfn5b"}  # the paper's teacher
DECLARED, LOCAL, HUB = "openai:", "local-dir:", "hf-hub:"
HUB_CONFIG = "open_clip_config.json"
TRANSFORMERS_CONFIG = "config.json"


class ModelNameError(ValueError):
    """A name is not that of a CLIP that can be loaded."""


@dataclass(frozen=True)
class Source:
    """Where a CLIP comes from.

    Attributes:
        kind: "openai"; "file", of OpenAI's design; "open_clip"; "folder", with open_clip's configuration; "transformers", a
            folder with that of transformers.
    """

    kind: str
    architecture: str = ""  # of open_clip
    tag: str = ""  # of its weights; empty if none are published
    path: str = ""  # file or folder; empty: to be downloaded
    repository: str = ""  # on the Hugging Face hub, of a folder whose weights may have to be downloaded


@dataclass(frozen=True)
class Architecture:
    """What must be known of a CLIP before it is loaded; the vision depth of a tower that takes no learned tokens is 0.

    `no_deep_text` says why its text tower takes no learned vectors at later layers; empty if it does.
    """

    preprocessing: Preprocessing
    vision_depth: int = 0
    text_depth: int = 12
    context_length: int = 77
    no_deep_text: str = ""

    @property
    def resolution(self) -> int:
        return self.preprocessing.size[0]

    @property
    def is_vit(self) -> bool:
        return self.vision_depth > 0


OPENAI_MODELS = {
    name: Architecture(Preprocessing((side, side)), depth)
    for name, side, depth in (
        ("RN50", 224, 0),
        ("RN101", 224, 0),
        ("RN50x4", 288, 0),
        ("RN50x16", 384, 0),
        ("RN50x64", 448, 0),
        ("ViT-B/32", 224, 12),
        ("ViT-B/16", 224, 12),
        ("ViT-L/14", 224, 24),
        ("ViT-L/14@336px", 336, 24),
    )
}


def resolve(name: str) -> Source:
    """Return where the CLIP of a name comes from; of "hf-hub:" names the configuration is downloaded.

    Raises:
        ModelNameError: there is no such model; the message names the closest.
    """
    if name in OPENAI_MODELS:
        return Source("openai")
    if name in EMBEDDED:
        folder = importlib.util.find_spec("kdpl.datasets").submodule_search_locations[0]
        return Source("file", path=str(Path(folder, "embedded", f"{name}.safetensors")))
    if name.startswith(DECLARED):
        path = Path(name.removeprefix(DECLARED)).expanduser()
        if not path.is_file():
            raise ModelNameError(f"There is no file '{path}', which '{name}' names: expected {DECLARED}FILE.")
        return Source("file", path=str(path))
    if name.startswith(HUB):
        return _on_hub(name)
    import open_clip

    architecture, _, rest = name.partition(":")
    if architecture in open_clip.list_models():
        return _of_open_clip(name, architecture, rest)
    path = Path(name.removeprefix(LOCAL)).expanduser()
    if path.is_dir():
        return _in_folder(path)
    if path.is_file():
        raise ModelNameError(
            f"'{name}' is weights alone, and no tensor shows heads, activation or preprocessing. If a configuration lies "
            f"beside it, write the folder '{path.parent}'; for weights of open_clip 'MODEL:TAG:FILE' (kdpl models); if "
            f"OpenAI's own clip.load is right for it (QuickGELU, heads of 64) '{DECLARED}{name}'."
        )
    names = [*OPENAI_MODELS, *EMBEDDED, *open_clip.list_models()]
    raise ModelNameError(
        f"'{name}' is not an OpenAI CLIP model, an open_clip model, a folder or a file.{did_you_mean(architecture, names)} "
        f"Expected {', '.join([*OPENAI_MODELS, *EMBEDDED])}, MODEL:TAG or MODEL:TAG:FILE of open_clip (see kdpl models), or "
        f"{HUB}OWNER/NAME."
    )


def _of_open_clip(name: str, architecture: str, rest: str) -> Source:
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(architecture)
    tag, _, file = (rest or DEFAULT_TAGS.get(architecture, "")).partition(":")
    if tag not in tags:
        tag, file = (tags[0] if len(tags) == 1 else ""), rest
    if file and not Path(file).expanduser().is_file():
        problem = f"'{file}' is neither a file nor a tag.{did_you_mean(file, tags)}"
    elif not tag and (tags or not file):
        problem = "it does not say which weights it is, and weights may differ in activation and preprocessing."
    else:
        return Source("open_clip", architecture, tag, str(Path(file).expanduser()) if file else "")
    expected = f"'{architecture}:TAG' or '{architecture}:TAG:FILE' with one of {', '.join(tags)}"
    none = f"'{architecture}:FILE', since no weights are published"
    raise ModelNameError(f"'{name}': {problem} Expected {expected if tags else none}.")


def _in_folder(folder: Path, repository: str = "") -> Source:
    """Return the source of a folder with a configuration."""
    for kind, config in (("folder", HUB_CONFIG), ("transformers", TRANSFORMERS_CONFIG)):
        if (folder / config).is_file():
            return Source(kind, path=str(folder), repository=repository)
    raise ModelNameError(
        f"The folder '{folder}' has no {HUB_CONFIG}, and no {TRANSFORMERS_CONFIG} of transformers: expected the files of an "
        "open_clip model or of a CLIPModel as the Hugging Face hub has them. For weights alone write 'MODEL:TAG:FILE'."
    )


def _on_hub(name: str) -> Source:
    """Return the source of a repository, whose configuration is downloaded unless it is in the cache."""
    from huggingface_hub import snapshot_download

    repository, at, revision = name.removeprefix(HUB).partition("@")
    for cached in (True, False):
        try:
            folder = snapshot_download(
                repository, revision=revision or None, allow_patterns=["*.json", "*.txt", "*.model"], local_files_only=cached
            )
            return _in_folder(Path(folder), f"{repository}{at}{revision}")
        except Exception as error:  # of many kinds: no such repository, no network, a snapshot without its configuration
            if not cached:
                raise ModelNameError(f"'{name}': its configuration cannot be downloaded ({short_reason(error)}).") from error
