"""The names of CLIPs, and what is known of a model by its name alone. A name is one of

- an OpenAI model: "ViT-B/32", "RN50", ...: downloaded and checksummed by OpenAI's `clip` package;
- an embedded model: "emoji_student", "emoji_teacher" (docs/benchmark.md);
- an open_clip architecture with a weights tag, "ViT-L-14:laion2b_s32b_b82k"; the tag may be left out if there is one choice;
- the same with a file of these weights, "ViT-L-14:laion2b_s32b_b82k:/path/open_clip_pytorch_model.bin"; without the tag if all
  tags of the architecture agree on activation and preprocessing;
- "openai:/path/weights.pt", a file of OpenAI's design in any size: QuickGELU, heads of 64, OpenAI's preprocessing;
- a folder with the configuration of open_clip or transformers and weights, "./clip" or "local-dir:clip";
- "hf-hub:OWNER/NAME", such a folder on the Hugging Face hub.

The name of a model is that model, whatever folder is called so: write "./ViT-L-14" for a folder.
"""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from kdpl.clip.preprocessing import OPENAI_MEAN, OPENAI_STD, Preprocessing
from kdpl.common.messages import short_reason
from kdpl.common.safe_text import UnsafeTextError, read_json

EMBEDDED = ("emoji_student", "emoji_teacher")
DEFAULT_TAGS = {"ViT-H-14-quickgelu": "dfn5b"}  # the paper's teacher
DECLARED, LOCAL, HUB = "openai:", "local-dir:", "hf-hub:"
HUB_CONFIG = "open_clip_config.json"
TRANSFORMERS_CONFIG = "config.json"
WEIGHTS_FILES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "model.safetensors",
    "pytorch_model.bin",
    "model.safetensors.index.json",
    "pytorch_model.bin.index.json",
)
SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")


class ModelNameError(ValueError):
    """A name is not that of a CLIP that can be loaded."""


@dataclass(frozen=True)
class Source:
    """Where a CLIP comes from.

    Attributes:
        kind: "openai"; "file", of OpenAI's design; "open_clip"; "folder", with open_clip's configuration; "transformers", a
            folder with that of transformers.
        architecture: of open_clip.
        tag: of its weights; empty if a file is named without it.
        path: file or folder; empty: to be downloaded.
        repository: on the Hugging Face hub, of a folder whose weights may have to be downloaded.
    """

    kind: str
    architecture: str = ""
    tag: str = ""
    path: str = ""
    repository: str = ""


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


def resolve(name: str) -> Source:  # noqa: PLR0911  one for each kind of name
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
    if name.startswith(LOCAL):
        return in_folder(Path(name.removeprefix(LOCAL)).expanduser())
    if name.startswith(HUB):
        return _on_hub(name)
    import open_clip

    architecture, _, rest = name.partition(":")
    if architecture in open_clip.list_models():
        return _of_open_clip(name, architecture, rest)
    path = Path(name).expanduser()
    if path.is_dir():
        return in_folder(path)
    if path.is_file():
        raise ModelNameError(
            f"'{name}' is weights alone, and no tensor shows heads, activation or preprocessing. If a configuration lies "
            f"beside it, write the folder '{path.parent}'; for weights of open_clip 'MODEL:TAG:FILE' (kdpl models); if "
            f"OpenAI's own clip.load is right for it (QuickGELU, heads of 64) '{DECLARED}{name}'."
        )
    names = [*OPENAI_MODELS, *EMBEDDED, *open_clip.list_models()]
    raise ModelNameError(
        f"'{name}' is not an OpenAI CLIP model, an open_clip model, a folder or a file.{_closest(architecture, names)} "
        f"Expected {', '.join([*OPENAI_MODELS, *EMBEDDED])}, MODEL:TAG or MODEL:TAG:FILE of open_clip (see kdpl models), or "
        f"{HUB}OWNER/NAME."
    )


def _of_open_clip(name: str, architecture: str, rest: str) -> Source:
    import open_clip

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
    path = Path(file).expanduser()
    if not path.is_file():
        raise ModelNameError(
            f"'{file}' in '{name}' is neither a file nor a weights tag of {architecture}.{_closest(file, tags)} "
            f"Tags: {', '.join(tags) or 'none'}."
        )
    if (path.parent / HUB_CONFIG).is_file():
        raise ModelNameError(
            f"'{name}': {HUB_CONFIG} beside the file says which model it is. Write '{LOCAL}{path.parent}', or move the file."
        )
    return Source("open_clip", architecture, tag, str(path))


def _closest(name: str, others: Sequence[str]) -> str:
    """Return the closest names, as the end of a sentence; empty if none is close."""
    close = get_close_matches(name, others, n=3, cutoff=0.7)
    return f" The closest names: {', '.join(close)}." if close else ""


def _configuration(folder: Path) -> str:
    """Return the kind of a folder's configuration, as `Source` has it; empty if there is none."""
    if (folder / HUB_CONFIG).is_file():
        return "folder"
    try:
        content = read_json(folder / TRANSFORMERS_CONFIG)
    except (OSError, UnsafeTextError):
        return ""
    return "transformers" if isinstance(content, dict) and "model_type" in content else ""


def in_folder(folder: Path, repository: str = "") -> Source:
    """Return the source of a folder with a configuration: itself, or the snapshot in a folder of the hub's cache."""
    snapshots, main = folder / "snapshots", folder / "refs" / "main"
    if snapshots.is_dir():
        found = sorted(path for path in snapshots.iterdir() if path.is_dir())
        wanted = main.read_text(encoding="utf-8").strip() if main.is_file() else ""
        chosen = [path for path in found if path.name == wanted] or found
        if len(chosen) != 1:
            raise ModelNameError(f"'{folder}' has {len(found)} snapshots: give the path of one of them.")
        folder = chosen[0]
    if kind := _configuration(folder):
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
            if cached and not _configuration(Path(folder)):
                continue
            return in_folder(Path(folder), f"{repository}{at}{revision}")
        except Exception as error:  # of many kinds: no such repository, no network
            if not cached:
                raise ModelNameError(f"'{name}': its configuration cannot be downloaded ({short_reason(error)}).") from error


def weights_in(folder: Path) -> Path:
    """Return the weights in the folder of a model, safetensors first.

    Raises:
        ModelNameError: there are none, or several of other names.
    """
    for file in WEIGHTS_FILES:
        if (folder / file).is_file():
            return folder / file
    others = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES and path.is_file())
    if len(others) == 1:
        return others[0]
    found = ", ".join(p.name for p in others) or "none"
    raise ModelNameError(f"'{folder}' should hold one file of weights, such as {WEIGHTS_FILES[0]}; found: {found}.")
