"""The files of a CLIP on the disk: folders as the Hugging Face hub has them, and what lies beside a file of weights."""

from pathlib import Path

from kdpl.clip.names.sources import ModelNameError, Source
from kdpl.common.safe_text import UnsafeTextError, read_json

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


def source_of_folder(folder: Path) -> Source:
    """Return the source of a model's folder.

    Raises:
        ModelNameError: as `hub_folder`; or it has no configuration of open_clip.
    """
    folder = hub_folder(folder)
    if (folder / HUB_CONFIG).is_file():
        return Source("folder", path=str(folder))
    if is_of_transformers(folder):
        return Source("transformers", path=str(folder))
    raise ModelNameError(
        f"The folder '{folder}' has no {HUB_CONFIG}, and no {TRANSFORMERS_CONFIG} of transformers: expected the files of an "
        "open_clip model or of a CLIPModel as the Hugging Face hub has them. For weights alone write 'MODEL:TAG:FILE'."
    )


def source_of_file(file: Path) -> Source:
    """Return the source of a file of weights: that of its folder if the configuration there is of this file.

    Raises:
        ModelNameError: the folder has a configuration and several files of weights, so that it is not clear whose it is.
    """
    folder = file.parent
    if not (folder / HUB_CONFIG).is_file():
        if file.name in WEIGHTS_FILES and is_of_transformers(folder):
            return Source("transformers", path=str(folder), file=str(file))
        return Source("file", path=str(file))
    others = [other.name for other in weights_files(folder) if other.name != file.name]
    if others and file.name not in WEIGHTS_FILES:
        raise ModelNameError(
            f"'{folder / HUB_CONFIG}' lies beside '{file.name}' and {', '.join(others[:3])}: it is not clear whether it "
            f"describes '{file.name}'. Move the file to its own folder: with its configuration, or, if it is OpenAI's, "
            "without one."
        )
    return Source("folder", path=str(folder), file=str(file))


def is_of_transformers(folder: Path) -> bool:
    """Whether a folder has the configuration of a model of transformers."""
    try:
        content = read_json(folder / TRANSFORMERS_CONFIG)
    except (OSError, UnsafeTextError):
        return False
    return isinstance(content, dict) and "model_type" in content


def hub_folder(folder: Path) -> Path:
    """Return the folder that holds the files of a model: itself, or the snapshot in a folder of the hub's cache.

    Raises:
        ModelNameError: it has several snapshots and no `refs/main` that chooses one.
    """
    snapshots, main = folder / "snapshots", folder / "refs" / "main"
    if not snapshots.is_dir():
        return folder
    found = sorted(path for path in snapshots.iterdir() if path.is_dir())
    wanted = main.read_text(encoding="utf-8").strip() if main.is_file() else ""
    chosen = [path for path in found if path.name == wanted] or (found if len(found) == 1 else [])
    if not chosen:
        raise ModelNameError(
            f"'{folder}' has {len(found)} snapshots ({', '.join(p.name[:12] for p in found)}) and refs/main names none of "
            "them: give the path of one snapshot."
        )
    return chosen[0]


def weights_files(folder: Path) -> list[Path]:
    """Return the files of weights in a folder, by name."""
    return sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES and path.is_file())


def weights_in(folder: Path) -> Path:
    """Return the weights in the folder of a model, safetensors first.

    Raises:
        ModelNameError: there are none, or several of other names.
    """
    for file in WEIGHTS_FILES:
        if (folder / file).is_file():
            return folder / file
    others = weights_files(folder)
    if len(others) == 1:
        return others[0]
    found = ", ".join(p.name for p in others) or "none"
    raise ModelNameError(f"'{folder}' should hold one file of weights, such as {WEIGHTS_FILES[0]}; found: {found}.")
