"""Interpret learned prompts as words: `kdpl interpret OUT` (kdpl/classifier/words.py)."""

import argparse
import sys
from collections.abc import Sequence

from tabulate import tabulate

from kdpl.common import exits
from kdpl.common.command import run_command
from kdpl.photos.commands import add_prompt_flags, check_sentence, classifier_of


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    about = "Print the words nearest to learned vectors, and the classes that moved most from a sentence."
    parser = argparse.ArgumentParser(prog="kdpl interpret", description=about)
    parser.add_argument("prompts", metavar="OUT", help="output folder of a training, or prompts.safetensors")
    parser.add_argument("--top", type=int, default=5, metavar="K", help="words per vector (default: 5)")
    parser.add_argument("--template", help='hand-written sentence, "an icon of a {}." (default: that of the teacher)')
    add_prompt_flags(parser)
    args = parser.parse_args(argv)
    try:
        if args.template:
            check_sentence(args.template)
        classifier = classifier_of(args, "cpu")
        from kdpl.classifier.words import context_words, moved_classes

        words, student = context_words(classifier, max(1, args.top)), classifier.student
        template = args.template or classifier.bundle.template
        has_text = words or (student.class_specific and classifier.encoder.compares_texts)
        moved = moved_classes(classifier, template) if has_text and not student.text_depends_on_images else []
    except (ValueError, OSError, ImportError) as error:
        return exits.report(error, exits.BAD_INPUT)
    if words:
        rows = [[i, *(f"{word} ({distance:.3f})" for word, distance in nearest)] for i, nearest in enumerate(words, 1)]
        print(tabulate(rows, ["vector", "nearest words, with their distances"], disable_numparse=True))
    else:
        print("No context vector of the first text layer is learned: there are no words to find.")
    if moved:
        print(f'\nCosine of the text features, learned against "{template}"\n')
        print(tabulate(moved, ["class", "cosine"], floatfmt=".3f", disable_numparse=[0]))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
