"""By which score images that are none of the classes are found: AUROC on the embedded benchmark, other data sets as outsiders.

For each of the ten targets its own validation images are inside and those of the other nine outside, with the sentence "a photo
of a {}." for every name. "max" is the largest logit, "energy" the logarithm of their summed exponentials, "probability" the
largest of the softmax; the others compare with names that are none of the classes: the embedded vocabulary, or ImageNet's.
"ECE" is the expected calibration error over the classes in ten bins, of the plain probabilities and of those whose temperature
is fitted to the embedded teacher, without labels.
"""

import argparse

import torch
import torch.nn.functional as F
from common import ROOT, print_rows
from open_clip import IMAGENET_CLASSNAMES
from torch import Tensor

from kdpl.bundle.decision import inside_score
from kdpl.clip.loading import load_clip
from kdpl.clip.model import Clip, similarity_logits
from kdpl.datasets.emoji.plans import TARGETS, class_names, draw, scenes_of
from kdpl.photos.fitting.calibrate import fit_temperature
from kdpl.text.prompts import encode, sentence_features
from kdpl.text.templates import DEFAULT, fill


def auroc(inside: Tensor, outside: Tensor) -> float:
    """Return the probability that an inside score is larger than an outside one."""
    ranks = torch.cat([inside, outside]).argsort().argsort().double() + 1
    n = len(inside)
    return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * len(outside)))


def calibration_error(p: Tensor, labels: Tensor) -> float:
    """Return the expected calibration error (ECE) in ten bins."""
    confidence, predicted = p.max(1)
    right, total = (predicted == labels).double(), 0.0
    for low in torch.arange(0, 1, 0.1):
        inside = (confidence > low) & (confidence <= low + 0.1)
        if inside.any():
            total += float((right[inside].mean() - confidence[inside].mean()).abs() * inside.double().mean())
    return total


@torch.no_grad()
def features(clip: Clip, pixels: Tensor) -> Tensor:
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (clip.mean, clip.std))
    if pixels.shape[-1] != clip.resolution:
        pixels = F.interpolate(pixels, size=(clip.resolution,) * 2, mode="bicubic", antialias=True)
    return torch.cat([F.normalize(clip.image_features((b - mean) / std).float(), dim=-1) for b in pixels.split(64)])


def scores(clip: Clip, images: Tensor, names: Tensor, backgrounds: dict[str, Tensor]) -> dict[str, Tensor]:
    logits = similarity_logits(clip.logit_scale, images, names)
    plain = {"max": logits.max(1).values, "energy": logits.logsumexp(1), "probability": logits.softmax(1).max(1).values}
    others = {k: similarity_logits(clip.logit_scale, images, text) for k, text in backgrounds.items()}
    return plain | {f"against {k}": inside_score(logits, b) for k, b in others.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the rows as one JSON object on the last line too")
    args = parser.parse_args()
    vocabulary = [n for n in (ROOT / "datasets/embedded/vocabulary.txt").read_text(encoding="utf-8").split("\n") if n.strip()]
    rows, logits, labels = [], {}, {}
    scenes = {name: [s for s in scenes_of(name) if s.split == "val"] for name in TARGETS}
    pixels = {name: torch.from_numpy(draw(scenes[name])).permute(0, 3, 1, 2).float() / 255 for name in TARGETS}
    for model in ("emoji_student", "emoji_teacher"):
        clip = load_clip(model)
        seen = {name: features(clip, pixels[name]) for name in TARGETS}
        found: dict[str, list[float]] = {}
        for target in TARGETS:
            names = class_names(target)
            own = {tuple(encode(n)) for n in names}
            backgrounds = {
                label: sentence_features(clip, fill(DEFAULT, [n for n in words if tuple(encode(n)) not in own]))
                for label, words in (("vocabulary", vocabulary), ("ImageNet", IMAGENET_CLASSNAMES))
            }
            text = sentence_features(clip, fill(DEFAULT, names))
            inside = scores(clip, seen[target], text, backgrounds)
            outside = scores(clip, torch.cat([seen[name] for name in TARGETS if name != target]), text, backgrounds)
            for key in inside:
                found.setdefault(key, []).append(auroc(inside[key], outside[key]))
            logits[model, target] = similarity_logits(clip.logit_scale, seen[target], text)
            labels[target] = torch.tensor([s.label for s in scenes[target]])
        rows.append({"model": model, **{key: sum(values) / len(values) for key, values in found.items()}})
    print("AUROC, mean of ten data sets")
    print_rows(rows, args.json)
    errors = []
    for target in TARGETS:
        student, teacher = logits["emoji_student", target], logits["emoji_teacher", target]
        t = fit_temperature(student, teacher)
        plain, fitted = (calibration_error((student / x).softmax(1), labels[target]) for x in (1.0, t))
        errors.append({"data set": target, "temperature": t, "ECE": plain, "ECE calibrated": fitted})
    print("\nCalibration of the student, fitted to the teacher without labels")
    print_rows(errors, args.json)


if __name__ == "__main__":
    main()
