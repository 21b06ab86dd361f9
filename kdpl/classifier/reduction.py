"""Large JPEGs decoded at a fraction of their size, where that changes no probability by more than a hundredth.

A JPEG can be decoded at a half, a quarter or an eighth of its size in a fraction of the time. What that does to the
probabilities is measured in each run: some of its own photos, spread over all, are predicted both ways, and the smallest size
is taken whose probabilities differ by at most `TOLERANCE`, a half of what is promised. Without such a size, JPEGs are decoded
in full.
"""

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from PIL import Image

from kdpl.common.images import BadImageError

if TYPE_CHECKING:
    from kdpl.classifier.classifier import Classifier
    from kdpl.classifier.known import ImageFeatureCache

PROMISE = 0.01  # the most by which a probability may differ
TOLERANCE = PROMISE / 2  # in the sample
SAMPLE = 8, 16  # photos, at least and at most: two alike photos may say nothing about the next one
SHARE = 10  # of so many photos one is sampled
LOOKED_AT = 64  # photos whose headers are read, to find large ones
FACTORS = (1, 2, 4)  # of the input's side: what the shorter edge keeps at least


class Chosen(NamedTuple):
    """At which size JPEGs are decoded, and what it was chosen by."""

    least: int  # see `Decoder.least`
    sampled: int
    difference: float  # the largest of a probability in the sample

    def words(self) -> str:
        """Return a line about it; empty if nothing was measured."""
        if not self.sampled:
            return ""
        if not self.least:
            return f"Large JPEGs were decoded in full: at a smaller size probabilities differ by up to {self.difference:.3f}"
        return (
            f"Large JPEGs were decoded at a fraction of their size: on {self.sampled} of them no probability differs by more "
            f"than {self.difference:.4f} (--full-size decodes all in full)"
        )


def choose_size(
    classifier: "Classifier", paths: Sequence[str], cache: "Callable[[int], ImageFeatureCache] | None" = None
) -> Chosen:
    """Return at which size JPEGs among these images should be decoded.

    Args:
        cache: of image features, by `Decoder.least`.
    """
    decoder, side = classifier.decoder, max(classifier.decoder.size)
    least, most = SAMPLE
    sample = _large_jpegs(paths, 2 * side)[: min(most, len(paths) // SHARE)]
    if len(sample) < least:  # it would say too little, or take as long as it saves
        return Chosen(0, 0, 0.0)
    before = decoder.least, decoder.known

    def probabilities(least: int) -> torch.Tensor:
        decoder.least, decoder.known = least, cache(least) if cache else None
        return classifier(sample)

    try:
        exact, difference = probabilities(0), 0.0
        for factor in FACTORS:
            difference = float((probabilities(factor * side) - exact).abs().max())
            if difference <= TOLERANCE:
                return Chosen(factor * side, len(sample), difference)
        return Chosen(0, len(sample), difference)
    except BadImageError:  # one of the sample cannot be read: it is reported when its turn comes
        return Chosen(0, 0, 0.0)
    finally:
        decoder.least, decoder.known = before


def _large_jpegs(paths: Sequence[str], least: int) -> list[str]:
    """Return JPEGs spread over all images whose shorter edge has at least that many pixels."""
    step = max(1, len(paths) // LOOKED_AT)
    found = []
    for path in paths[::step][:LOOKED_AT]:
        if str(path).lower().endswith((".jpg", ".jpeg", ".jfif")) and os.path.isfile(path):
            try:
                with Image.open(path) as image:
                    if image.format in ("JPEG", "MPO") and min(image.size) >= least:
                        found.append(path)
            except Exception:  # of many kinds: it is reported when its turn comes
                continue
    return found[:: max(1, len(found) // SAMPLE[1])]
