"""The CLIPs that can be named, `kdpl models [WORD ...]`: what they are, and which weights are on this machine.

kdpl models                 all models with their tags
kdpl models vit-b-16        those of this name, with parameters and the prompt learners that they take
"""

import argparse
import sys
from collections.abc import Sequence

from tabulate import tabulate

from kdpl.clip.loading import describe, find_weights, outline_clip
from kdpl.clip.names import EMBEDDED, OPENAI_MODELS, ModelNameError
from kdpl.clip.weights import WeightsError
from kdpl.common import exits
from kdpl.common.command import run_command
from kdpl.config.defaults import text_learners

MOST_BUILT = 12  # models that are built without weights to count their parameters, in some seconds


def named(words: Sequence[str] = ()) -> dict[str, list[str]]:
    """Return the names of models whose name or tag has all words, each with its tags; OpenAI's and the embedded have none."""
    import open_clip

    tags = {name: open_clip.list_pretrained_tags_by_model(name) for name in open_clip.list_models()}
    tags = {**dict.fromkeys((*OPENAI_MODELS, *EMBEDDED), ()), **tags}
    fitting = {
        name: [tag for tag in some or [""] if all(word.casefold() in f"{name}:{tag}".casefold() for word in words)]
        for name, some in tags.items()
    }
    return {name: [tag for tag in some if tag] for name, some in fitting.items() if some}


def facts_of(name: str) -> list[str]:
    """Return pixels, parameters in millions, the learners that a model takes as the student, and its file if it is here."""
    try:
        a, file = describe(name), find_weights(name)
    except (ModelNameError, WeightsError) as error:  # no weights are published; its tokenizer needs a package or files
        return ["", "", "write MODEL:FILE" if isinstance(error, ModelNameError) else "needs files (docs/models.md)", ""]
    count = sum(value.numel() for value in outline_clip(name).model.parameters())
    learners = f"those of text: {', '.join(text_learners())}" if not a.is_vit else "all"
    learners = "all with prompts at depth 1" if a.no_deep_text else learners
    return [f"{a.resolution}", f"{count / 1e6:,.0f}", learners, f"{file.stat().st_size / 1e6:,.0f} MB here" if file else ""]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="kdpl models", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("words", nargs="*", metavar="WORD", help="part of the name of a model or of a tag; all must fit")
    words = parser.parse_args(argv).words
    try:
        found = named(words)
        if not found:
            raise ModelNameError(f"No model or tag has {' and '.join(words)} in its name.")
        if len(found) <= MOST_BUILT:
            names = [name for model, tags in found.items() for name in ([f"{model}:{tag}" for tag in tags] or [model])]
            heads = ["name", "pixels", "million parameters", "student of", "weights"]
            print(tabulate([[name, *facts_of(name)] for name in names], heads, disable_numparse=True))
        else:
            rows = [[model, ", ".join(tags)] for model, tags in found.items()]
            print(tabulate(rows, ["model", "tags"], disable_numparse=True, maxcolwidths=[None, 80]))
            print("", f"{len(found)} models. Write MODEL:TAG. kdpl models WORD shows a few with their sizes.", sep="\n")
    except (ValueError, OSError, ImportError) as error:
        return exits.report(error, exits.BAD_INPUT)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
