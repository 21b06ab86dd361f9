"""Propose class names for a folder of photos: `kdpl names PHOTOS`, from a vocabulary, by the teacher."""

import argparse
import random
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate

from kdpl.common.images import list_images
from kdpl.common.outputs import check_files, open_output
from kdpl.config.keys import ConfigError
from kdpl.photos.commands import (
    add_teacher_flags,
    check_photos,
    check_sentences,
    device_type,
    doing,
    guarded,
    teacher_name,
    with_size,
)

LOOKED_AT = 1000  # photos at most, drawn by the seed


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="kdpl names",
        description="Propose class names for a folder of photos: the names of a vocabulary that the teacher sees.",
    )
    add = parser.add_argument
    add("photos", metavar="PHOTOS", help="folder of photos, at any depth")
    add("-o", "--output", metavar="FILE", help="also write the names, one a line, to be edited")
    add("--count", type=int, default=50, metavar="N", help="names that are proposed at most (default: 50)")
    add("--share", type=float, default=0.5, metavar="P", help="least share of the photos, in percent (default: 0.5)")
    add_teacher_flags(parser, "the CLIP that sees")
    add("--vocabulary", metavar="V", help="imagenet21k, openimages, or a file of names (default: imagenet21k)")
    add("--seed", type=int, default=1, help=f"of the {LOOKED_AT:,} photos that are drawn (default: 1)")
    return parser.parse_args(argv)


def propose(photos: Sequence[Path], teacher_name: str, names: list[str], template: str) -> list[tuple[str, int, float]]:
    """Return the names that are the likeliest of some photo, most frequent first.

    Beside a name stand how many photos it is the likeliest of, and its mean probability over all photos.
    """
    import torch

    from kdpl.classifier.decoding import Decoder, stacked_pixels
    from kdpl.clip.loading import load_clip
    from kdpl.clip.model import Normalize, check_finite
    from kdpl.distill.teacher import Teacher

    with doing(f"Loading {with_size(teacher_name)}"):
        clip = load_clip(teacher_name, "fp32", device_type())
    with doing(f"Encoding {len(names):,} names"):
        teacher = Teacher(clip, names, template, clip.mean, clip.std, "own", cached=True)
    decoder, normalize = Decoder(clip.preprocessing), Normalize(clip.mean, clip.std)
    counts, mass = Counter(), torch.zeros(len(names))
    with doing("Looking at photos", len(photos), "photo") as bar, torch.no_grad():
        for batch in decoder.batches(photos, 32, on_bad=lambda image, error: print(f"left out: {error}", file=sys.stderr)):
            features = teacher.image_features(normalize(stacked_pixels(batch).to(clip.device)))
            p = check_finite(teacher.logits(features, torch.ones(())).softmax(1).cpu(), "probabilities")  # (B, V)
            counts.update(p.argmax(1).tolist())
            mass += p.sum(0)
            bar.update(len(batch))
    found = [(names[i], n, float(mass[i]) / counts.total()) for i, n in counts.items()]
    return sorted(found, key=lambda row: (-row[1], -row[2], row[0]))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    args = parse_args(argv)
    return guarded(lambda: run(args))


def run(args: argparse.Namespace) -> int:
    """Propose as the command line asks; return the exit status."""
    if args.count < 1 or not 0 <= args.share <= 100:
        raise ConfigError(f"--count {args.count}, --share {args.share}: expected at least 1 name, and 0 to 100 percent.")
    check_sentences(args.template)
    check_photos(args.photos)
    check_files([args.output], [args.vocabulary])
    photos = list_images(args.photos).images
    photos = sorted(random.Random(args.seed).sample(photos, min(LOOKED_AT, len(photos))))
    check_files([args.output], photos)
    teacher = teacher_name(args.teacher)

    from kdpl.photos.pile import vocabulary_for
    from kdpl.text.vocabulary import load_vocabulary

    found = propose(photos, teacher, load_vocabulary(args.vocabulary or vocabulary_for(teacher)), args.template)
    if not found:
        raise ConfigError(f"PHOTOS '{args.photos}' has no photo that can be read.")
    seen = sum(n for _, n, _ in found)
    kept = [row for row in found if 100 * row[1] >= args.share * seen][: args.count]
    print(tabulate([(name, n, f"{100 * p:.1f}") for name, n, p in kept], ["name", "photos", "mean probability (%)"]))
    covered = f"{sum(n for _, n, _ in kept):,} of {seen:,} photos"
    print("", f"{len(kept)} names for {covered}. Strike out, merge and rename them as you like.", sep="\n")
    if args.output:
        with open_output(args.output, "w") as file:
            file.write("\n".join([*(name for name, *_ in kept), ""]))
    return 0
