"""The CLIPs that can be named, `kdpl models [WORD ...]`: what they are, and which weights are on this machine.

kdpl models                 all models with their tags, and what is in the caches
kdpl models vit-b-16        those of this name, with parameters and the prompt learners that they take
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tabulate import tabulate

from kdpl.clip.names import EMBEDDED, OPENAI_MODELS
from kdpl.clip.names.folders import source_of_folder
from kdpl.clip.names.sources import ModelNameError
from kdpl.common.command import run_command
from kdpl.config.defaults import text_learners

MOST_BUILT = 12  # models that are built without weights to count their parameters, in some seconds


class Model(NamedTuple):
    """A model that can be named, with its tags; without any the name stands alone."""

    name: str
    tags: tuple[str, ...]
    side: int  # of its images, in pixels

    def names(self) -> list[str]:
        return [f"{self.name}:{tag}" for tag in self.tags] or [self.name]


def all_models() -> list[Model]:
    """Return OpenAI's models, the embedded ones, and those of open_clip."""
    import open_clip

    from kdpl.clip.loading import describe

    known = [Model(name, (), a.resolution) for name, a in OPENAI_MODELS.items()]
    known += [Model(name, (), describe(name).resolution) for name in EMBEDDED]
    for name in open_clip.list_models():
        side = (open_clip.get_model_config(name) or {})["vision_cfg"].get("image_size", 224)
        known.append(Model(name, tuple(open_clip.list_pretrained_tags_by_model(name)), side))
    return known


def matching(models: Sequence[Model], words: Sequence[str]) -> list[Model]:
    """Return the models whose names hold all words, and of the others those of whose tags some do, with these tags."""
    found = []
    for model in models:
        name, wanted = model.name.casefold(), [word.casefold() for word in words]
        tags = tuple(tag for tag in model.tags if all(word in f"{name}:{tag}".casefold() for word in wanted))
        if all(word in name for word in wanted):
            found.append(model)
        elif tags:
            found.append(model._replace(tags=tags))
    return found


def weights_here(name: str) -> Path | None:
    """Return the file of a model's weights on this machine, which is not read, or None."""
    from kdpl.clip.names import resolve
    from kdpl.clip.openai import openai_file
    from kdpl.clip.openclip.models import find_open_clip

    source = resolve(name)
    if source.kind == "openai":
        file = openai_file(name)[1]
    elif source.kind == "file":
        file = Path(source.path)
    else:
        file = find_open_clip(name, source)
    return file if file and file.is_file() else None


def learners_of(name: str) -> tuple[str, str]:
    """Return parameters, in millions, and the prompt learners that a model takes as the student."""
    from kdpl.clip.files import WeightsError
    from kdpl.clip.loading import describe, outline_clip

    try:
        a = describe(name)
        count = sum(value.numel() for value in outline_clip(name).model.parameters())
    except WeightsError:  # its tokenizer needs a package or files
        return "", "needs pip install 'kdpl[hf]', or its tokenizer's files (docs/models.md)"
    if a.no_text_context:
        return f"{count / 1e6:,.0f}", "teacher only"
    some = "all with prompts at depth 1" if a.no_deep_text else "all"
    return f"{count / 1e6:,.0f}", some if a.is_vit else f"those of text: {', '.join(text_learners())}"


def folders_here() -> Iterator[tuple[str, str]]:
    """Yield the folders of the hub's cache that are CLIPs by themselves, and of which format."""
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    for folder in sorted(cache.glob("models--*")) if cache.is_dir() else ():
        try:
            yield str(folder), source_of_folder(folder).kind
        except (ModelNameError, OSError):
            continue


def table(models: Sequence[Model]) -> str:
    """Return the models in lines: parameters and learners of a few, else how many sets of weights are on this machine."""

    rows, few = [], len(models) <= MOST_BUILT
    for model in models:
        named = bool(model.tags) or model.name in (*OPENAI_MODELS, *EMBEDDED)  # of the others no weights are published
        files = {name: weights_here(name) if named else None for name in model.names()}
        if not few:
            here = sum(file is not None for file in files.values())
            rows.append([model.name, ", ".join(model.tags), model.side, f"{here} here" if here else ""])
            continue
        parameters, learners = learners_of(model.names()[0]) if named else ("", "write MODEL:FILE")
        for name, file in files.items():
            size = f"{file.stat().st_size / 1e6:,.0f} MB here" if file else ""
            rows.append([name, parameters, model.side, learners, size])
    if few:
        return tabulate(rows, ["name", "million parameters", "pixels", "student of", "weights"], disable_numparse=True)
    return tabulate(rows, ["model", "tags", "pixels", "weights"], disable_numparse=True, maxcolwidths=[None, 60, None, None])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    from kdpl.common import exits

    parser = argparse.ArgumentParser(
        prog="kdpl models", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("words", nargs="*", metavar="WORD", help="part of the name of a model or of a tag; all must fit")
    args = parser.parse_args(argv)
    try:
        found = matching(all_models(), args.words)
        if not found:
            return exits.report(ValueError(f"No model or tag has {' and '.join(args.words)} in its name."), exits.BAD_INPUT)
        print(table(found))
        if len(found) > MOST_BUILT:
            print(
                "",
                f"{len(found)} models. Write MODEL:TAG. With a word, kdpl models WORD, a few are shown with their sizes.",
                sep="\n",
            )
        for folder, kind in folders_here():
            print(f"in the Hugging Face cache, {'open_clip' if kind == 'folder' else kind}: {folder}")
    except (ValueError, OSError, ImportError) as error:
        return exits.report(error, exits.BAD_INPUT)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
