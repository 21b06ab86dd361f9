"""A classifier for others: `kdpl export OUT FOLDER` writes a model with a page that classifies pictures in the browser."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from kdpl.common import exits
from kdpl.common.exits import report
from kdpl.common.images.files import list_images
from kdpl.photos.prompts import add_prompt_flags, classifier_of

CHECKED = 100  # photos on which the model is compared with the classifier, at most


def parse_args(argv: Sequence[str] | None = None, prog: str = "kdpl export") -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Write a folder that serves itself: an ONNX model that resizes and normalises, a page, a Python client.",
    )
    add = parser.add_argument
    add("prompts", metavar="OUT", help="output folder of a fit or a training, or prompts.safetensors")
    add("folder", metavar="FOLDER", help="where model, names, page and client are written")
    add("--half", action="store_true", help="weights in half precision: half the size")
    add("--check", metavar="PHOTOS", help=f"compare the model with kdpl on up to {CHECKED} of these photos")
    add("--no-page", action="store_true", help="the model, its names and the Python client alone")
    add("--runtime", default="", metavar="FILE", help="onnxruntime-web as .tgz or folder (default: npm fetches it)")
    add_prompt_flags(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None, prog: str = "kdpl export") -> int:
    """Run the command line; return the exit status."""
    args = parse_args(argv, prog)
    try:
        from kdpl.classifier.serve.folder import add_runtime, agreement, write_folder

        photos = [str(p) for p in list_images(args.check).images] if args.check else []
        classifier = classifier_of(args, "cpu")
        folder = Path(args.folder)
        model = write_folder(classifier, folder, args.reject, args.half)
        print(f"{model}: {model.stat().st_size / 1e6:.1f} MB, {len(classifier.classnames):,} names")
        if photos:
            found = agreement(classifier, model, photos[:: max(1, len(photos) // CHECKED)][:CHECKED])
            if found is None:
                print("Not compared: onnxruntime is not installed (pip install onnxruntime).")
            else:
                print(f"Of {found.photos:,} photos {found.same:,} have the same likeliest name as with kdpl.")
                print(f"No probability differs by more than {found.difference:.5f}.")
        if args.no_page:
            for name in ("index.html", "page.css", "page.js", "serve.py"):
                (folder / name).unlink(missing_ok=True)
            print(f"Use: python {folder / 'client.py'} PICTURE ...")
        else:
            add_runtime(folder, args.runtime)
            print(f"Use: python {folder / 'client.py'} PICTURE ..., or python {folder / 'serve.py'} for the page.")
    except (ValueError, OSError, ImportError) as error:
        return report(error, exits.BAD_INPUT)
    return 0


if __name__ == "__main__":
    sys.exit(main())
