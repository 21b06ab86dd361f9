"""What was learned for others: `kdpl export OUT FOLDER`, a model with a page that classifies pictures in the browser.

`kdpl export OUT --head FILE` writes the matrix of text features alone, for programs that have the CLIP's image features;
`kdpl push OUT OWNER/NAME` uploads the prompts and their card to the Hugging Face Hub.
"""

import argparse
from collections.abc import Sequence

from kdpl.common.outputs import EXPORT, check_files, check_folder, take_folder
from kdpl.config.command_line import add_learner_flag
from kdpl.photos.commands import add_prompt_flags, check_prompts, classifier_of, guarded, load_learner


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    """Run `kdpl export`; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="kdpl export",
        usage="%(prog)s OUT [FOLDER] [--head FILE] [options]",
        description="Write a folder that serves itself (an ONNX model, a page, a Python client), the matrix of text features "
        "alone, or both.",
    )
    add = parser.add_argument
    add("prompts", metavar="OUT", help="output folder of a fit or a training, or prompts.safetensors")
    add("folder", nargs="?", metavar="FOLDER", help="where model, names, page and client are written")
    add("--head", metavar="FILE", help="write text features, names, scale and preprocessing as a safetensors file")
    add("--half", action="store_true", help="weights in half precision: half the size")
    add("--no-page", action="store_true", help="the model, its names and the Python client alone")
    add("--runtime", default="", metavar="FILE", help="the npm package onnxruntime-web (default: npm fetches it)")
    add_prompt_flags(parser)
    args = parser.parse_args(argv)
    if not args.folder and not args.head:
        parser.error("expected FOLDER, --head FILE, or both.")
    check_prompts(args.prompts)
    check_files([args.head], [args.classnames, *args.learner])
    runtime = {}
    if args.folder:
        check_folder(args.folder, EXPORT)
        from kdpl.classifier.serve import require_onnx

        require_onnx()
        if not args.no_page:
            from kdpl.classifier.serve import read_runtime

            runtime = read_runtime(args.runtime)
    classifier = classifier_of(args, "cpu")
    if args.head:
        from kdpl.classifier.serve import write_head

        path = write_head(classifier, args.head)
        size = f"{len(classifier.classnames):,} names x {classifier.clip.embed_dim}"
        print(f"{path}: {size}, for the image features of {classifier.bundle.backbone}")
        tensors = "text_features and logit_scale" if classifier.encoder.compares_texts else "a kernel head"
        print(f"It holds {tensors}; docs/your_photos.md has the lines that give probabilities.")
    if not args.folder:
        return 0
    from kdpl.classifier.serve import write_folder

    folder = take_folder(args.folder, EXPORT)
    model = write_folder(classifier, folder, args.reject, args.half, runtime)
    print(f"{model}: {model.stat().st_size / 1e6:.1f} MB, {len(classifier.classnames):,} names")
    use = f"Use: python {folder / 'client.py'} PICTURE ..."
    page = f", or for the page: python -m http.server --bind 127.0.0.1 --directory {folder}"
    print(use + page if runtime else use)
    return 0


@guarded
def push_main(argv: Sequence[str] | None = None) -> int:
    """Run `kdpl push`; return its exit status."""
    parser = argparse.ArgumentParser(prog="kdpl push", description="Upload prompts and their card to the Hugging Face Hub.")
    add = parser.add_argument
    add("prompts", metavar="OUT", help="output folder of a fit or a training, or prompts.safetensors")
    add("repository", metavar="OWNER/NAME", help="the Hub's model repository; it is created if missing")
    add("--private", action="store_true", help="create it as a private one")
    add("--license", default="unknown", metavar="ID", help="licence of the prompts, by the Hub's names (default: unknown)")
    add_learner_flag(parser)
    args = parser.parse_args(argv)
    check_prompts(args.prompts)
    load_learner(args)

    from kdpl.bundle.hub import FILE_NAME, PREFIX, push

    address = push(args.prompts, args.repository, args.private, args.license)
    print(f'{FILE_NAME} and its card are at {address}; use: kdpl.load("{PREFIX}{args.repository}")')
    return 0
