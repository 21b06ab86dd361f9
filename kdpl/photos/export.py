"""A classifier for others: `kdpl export OUT FOLDER` writes a model with a page that classifies pictures in the browser.

`kdpl export OUT --head FILE` writes the matrix of text features alone, for programs that have the CLIP's image features.
"""

import argparse
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from kdpl.common import exits
from kdpl.common.images import list_images
from kdpl.common.outputs import EXPORT, check_files, check_folder, take_folder
from kdpl.photos.prompts import add_prompt_flags, check_prompts, classifier_of

if TYPE_CHECKING:
    from kdpl.classifier.classifier import Classifier

OF_A_FOLDER = ("half", "check", "no-page", "runtime", "reject")  # flags
CHECKED = 100  # photos on which the model is compared with the classifier, at most


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="kdpl export",
        usage="%(prog)s OUT [FOLDER] [--head FILE] [options]",
        description="Write a folder that serves itself (an ONNX model that resizes and normalises, a page, a Python client), "
        "the matrix of text features alone, or both.",
    )
    add = parser.add_argument
    add("prompts", metavar="OUT", help="output folder of a fit or a training, or prompts.safetensors")
    add("folder", nargs="?", metavar="FOLDER", help="where model, names, page and client are written")
    add("--head", metavar="FILE", help="write text features, names, scale and preprocessing as a safetensors file")
    add("--half", action="store_true", help="weights in half precision: half the size")
    add("--check", metavar="PHOTOS", help=f"compare the model with kdpl on up to {CHECKED} of these photos")
    add("--no-page", action="store_true", help="the model, its names and the Python client alone")
    add("--runtime", default="", metavar="FILE", help="onnxruntime-web as .tgz or folder (default: npm fetches it)")
    add_prompt_flags(parser)
    args = parser.parse_args(argv)
    if not args.folder and not args.head:
        parser.error("expected FOLDER, --head FILE, or both.")
    if not args.folder and (given := [f"--{flag}" for flag in OF_A_FOLDER if getattr(args, flag.replace("-", "_"))]):
        parser.error(f"{', '.join(given)}: for a FOLDER, and none is given.")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    args = parse_args(argv)
    try:
        check_prompts(args.prompts, [args.folder or ""])
        check_files([args.head], [args.classnames, args.learner])
        if args.folder:
            check_folder(args.folder, EXPORT, args.check)
            from kdpl.classifier.serve.onnx_file import require_onnx

            require_onnx()
        runtime = {}
        if args.folder and not args.no_page:
            from kdpl.classifier.serve.folder import read_runtime

            runtime = read_runtime(args.runtime)
        photos = [str(p) for p in list_images(args.check).images] if args.check else []
        classifier = classifier_of(args, "cpu")
        if args.head:
            export_head(args, classifier)
        if args.folder:
            export_folder(args, classifier, photos, runtime)
    except (ValueError, OSError, ImportError) as error:
        return exits.report(error, exits.BAD_INPUT)
    return 0


def export_head(args: argparse.Namespace, classifier: "Classifier") -> None:
    from kdpl.classifier.serve.head import write_head

    path = write_head(classifier, args.head)
    size = f"{len(classifier.classnames):,} names x {classifier.clip.embed_dim}"
    print(f"{path}: {size}, for the image features of {classifier.bundle.backbone}")
    if classifier.encoder.compares_texts:
        print("Probabilities: (logit_scale * image_features @ text_features.T).softmax(-1); docs/export.md has the lines.")
    else:
        print("A kernel head: centres, coefficients, mean, linear, gamma and factor; docs/export.md has the lines.")


def export_folder(
    args: argparse.Namespace, classifier: "Classifier", photos: Sequence[str], runtime: Mapping[str, bytes]
) -> None:
    from kdpl.classifier.serve.folder import agreement, write_folder

    folder = take_folder(args.folder, EXPORT)
    model = write_folder(classifier, folder, args.reject, args.half, runtime)
    print(f"{model}: {model.stat().st_size / 1e6:.1f} MB, {len(classifier.classnames):,} names")
    if photos:
        found = agreement(classifier, model, photos[:: max(1, len(photos) // CHECKED)][:CHECKED])
        if found is None:
            print("Not compared: onnxruntime is not installed (pip install onnxruntime).")
        else:
            print(f"Of {found.photos:,} photos {found.same:,} have the same likeliest name as with kdpl.")
            print(f"No probability differs by more than {found.difference:.5f}.")
    use = f"Use: python {folder / 'client.py'} PICTURE ..."
    print(f"{use}, or python {folder / 'serve.py'} for the page." if runtime else use)
