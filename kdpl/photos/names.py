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
from kdpl.photos.commands import add_teacher_flags, check_photos, device_type, doing, guarded, teacher_name

LOOKED_AT = 1000  # photos at most, drawn at random
LEAST_SHARE = 0.005  # of these, for a name that is proposed


def propose(photos: Sequence[Path], teacher_name: str, names: list[str], template: str) -> list[tuple[str, int]]:
    """Return the names that are the likeliest of some photo, each with the number of photos, most frequent first."""
    import torch

    from kdpl.classifier.decoding import Decoder, stacked_pixels
    from kdpl.clip.loading import load_clip
    from kdpl.clip.model import Normalize, check_finite
    from kdpl.distill.teacher import Teacher

    with doing(f"Loading {teacher_name}"):
        clip = load_clip(teacher_name, "fp32", device_type())
    with doing(f"Encoding {len(names):,} names"):
        teacher = Teacher(clip, names, template, clip.mean, clip.std, "own", cached=True)
    decoder, normalize, counts = Decoder(clip.preprocessing), Normalize(clip.mean, clip.std), Counter()
    with doing("Looking at photos", len(photos), "photo") as bar, torch.no_grad():
        for batch in decoder.batches(photos, 32, on_bad=lambda image, error: print(f"left out: {error}", file=sys.stderr)):
            features = teacher.image_features(normalize(stacked_pixels(batch).to(clip.device)))
            logits = check_finite(teacher.logits(features, torch.ones(())), "logits")  # (B, V)
            counts.update(logits.argmax(1).tolist())
            bar.update(len(batch))
    return sorted(((names[i], n) for i, n in counts.items()), key=lambda row: (-row[1], row[0]))


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    """Run `kdpl names`; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="kdpl names",
        description="Propose class names for a folder of photos: the names of a vocabulary that the teacher sees.",
    )
    add = parser.add_argument
    add("photos", metavar="PHOTOS", help="folder of photos, at any depth")
    add("-o", "--output", metavar="FILE", help="also write the names, one a line, to be edited")
    add("--count", type=int, default=50, metavar="N", help="names that are proposed at most (default: 50)")
    add_teacher_flags(parser, "the CLIP that sees")
    add("--vocabulary", metavar="V", help="imagenet21k, openimages, or a file of names (default: imagenet21k)")
    args = parser.parse_args(argv)
    check_photos(args.photos, args.template)
    photos = list_images(args.photos).images
    photos = sorted(random.Random(1).sample(photos, min(LOOKED_AT, len(photos))))
    check_files([args.output], [args.vocabulary, *photos])
    teacher = teacher_name(args.teacher)

    from kdpl.photos.pile import vocabulary_for
    from kdpl.text.vocabulary import load_vocabulary

    found = propose(photos, teacher, load_vocabulary(args.vocabulary or vocabulary_for(teacher)), args.template)
    if not found:
        raise ConfigError(f"PHOTOS '{args.photos}' has no photo that can be read.")
    seen = sum(n for _, n in found)
    kept = [(name, n) for name, n in found if n >= LEAST_SHARE * seen][: max(1, args.count)]
    print(tabulate(kept, ["name", "photos"]))
    covered = f"{sum(n for _, n in kept):,} of {seen:,} photos"
    print("", f"{len(kept)} names for {covered}. Strike out, merge and rename them as you like.", sep="\n")
    if args.output:
        with open_output(args.output, "w") as file:
            file.write("\n".join([*(name for name, _ in kept), ""]))
    return 0
