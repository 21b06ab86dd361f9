"""From a folder of photos of 12 megapixels to a table: `kdpl predict` beside the loops of open_clip and of transformers.

All have a CLIP of ViT-B/32's size with the same random weights (transformers: of the same sizes) and the same photos. They take
turns in processes of their own. Times begin when the model is loaded: "photos_per_s" is of the whole run, "cpu_s" the seconds
that all cores together spend on a photo, which neighbours on the machine hardly change, and "first_s" the time until the
first photo has its answer, from the start of the process on. "again" is a second run whose features are in the cache. "tower
alone" is the image tower on pixels that are ready: no way of reading photos can be faster with this model. "difference" is
the largest of a probability from kdpl's with full decoding. Without transformers its row is left out.
"""

import argparse
import importlib.util
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from common import ROOT, in_own_process, machine, peak_memory, print_rows, random_clip
from PIL import Image

STARTED = time.time()
WAYS = ("kdpl", "kdpl again", "open_clip", "transformers", "tower alone")
BATCH = 16
DISTINCT = 24  # pictures that are drawn; further files are theirs, with other bytes behind the end

Measured: TypeAlias = tuple[float, float, float, dict]  # seconds, CPU seconds, seconds to the first answer, probabilities


def clocks() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def passed(start: tuple[float, float]) -> tuple[float, float]:
    return time.perf_counter() - start[0], time.process_time() - start[1]


def write_photos(folder: Path, count: int, size: tuple[int, int]) -> None:
    """Write JPEGs of coarse shapes, edges and fine texture, whose bytes per pixel are those of photos."""
    folder.mkdir()
    draws = np.random.default_rng(0)
    for i in range(min(count, DISTINCT)):
        coarse = Image.fromarray(draws.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
        edges = Image.fromarray(draws.integers(0, 256, (45, 60, 3), dtype=np.uint8)).resize(size, Image.Resampling.NEAREST)
        photo = np.asarray(Image.blend(coarse, edges, 0.3)).astype(np.int16)
        photo += draws.integers(-8, 9, (size[1], size[0], 1), dtype=np.int16)
        Image.fromarray(photo.clip(0, 255).astype(np.uint8)).save(folder / f"{i:05d}.jpg", quality=90)
    for i in range(DISTINCT, count):  # other content to the cache, the same work to the decoder
        (folder / f"{i:05d}.jpg").write_bytes((folder / f"{i % DISTINCT:05d}.jpg").read_bytes() + i.to_bytes(4, "big"))


def write_prompts(folder: Path, name: str, classes: int) -> None:
    """Write a CLIP with random weights and untrained prompts for it."""
    from safetensors.torch import save_file

    from kdpl.bundle import Bundle, write_bundle
    from kdpl.clip.loading import load_clip
    from kdpl.students import CoOp

    weights = random_clip(name, seed=0).model.state_dict()
    save_file({k: v.half().contiguous() for k, v in weights.items()}, folder / "clip.safetensors")
    clip = load_clip(f"openai:{folder / 'clip.safetensors'}")
    names = (ROOT / "datasets/embedded/vocabulary.txt").read_text(encoding="utf-8").split("\n")[:classes]
    student = CoOp(clip, {"CTX_INIT": "a photo of a", "PREC": "fp32"}, names)
    bundle = Bundle(
        student.learned.state_dict(), variant="CoOp", trainer="KDPL_CoOp", dataset="", template="a photo of a {}.",
        teacher=None, backbone=clip.name, backbone_sha256=clip.weights_digest, options=dict(student.options),
        preprocessing=clip.preprocessing, classnames=names, class_agnostic=False, epoch=0, results=[], config="",
    )  # fmt: skip
    write_bundle(folder, bundle)


def by_kdpl(folder: Path) -> Measured:
    from kdpl import predict
    from kdpl.classifier import predictions
    from kdpl.photos.commands import classifier_of

    output = folder / "out.jsonl"
    common = ["--json", str(output), "--quiet", "--batch-size", str(BATCH), "--device", "cpu", "--top", "100"]
    command = predict.parse_args([str(folder), str(folder / "images"), *common])
    images = predict.check(command)
    classifier = classifier_of(command, command.device)
    start = clocks()
    run = predictions.Run(classifier, command, images)
    run()
    seconds = passed(start)
    rows = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    answers = {r["path"]: dict(zip(r["names"], r["probabilities"], strict=True)) for r in rows}
    return *seconds, run.first_answer - STARTED, answers


def by_open_clip(folder: Path) -> Measured:
    """The loop of open_clip's README, in batches."""
    import open_clip
    from safetensors.torch import load_file

    from kdpl.classifier.classifier import load

    model, _, preprocess = open_clip.create_model_and_transforms("ViT-B-32-quickgelu")
    model.load_state_dict({k: v.float() for k, v in load_file(folder / "clip.safetensors").items()}, strict=False)
    model.eval()
    classifier = load(folder, "cpu")
    text, scale, names = classifier.text_features, float(classifier.clip.logit_scale), classifier.classnames
    paths = sorted((folder / "images").iterdir())
    start, first, answers = clocks(), 0.0, {}
    with torch.no_grad():
        for at in range(0, len(paths), BATCH):
            batch = paths[at : at + BATCH]
            images = torch.stack([preprocess(Image.open(path)) for path in batch])
            features = model.encode_image(images)
            features /= features.norm(dim=-1, keepdim=True)
            p = (scale * features @ text.T).softmax(dim=-1)
            answers |= {str(path): dict(zip(names, row.tolist(), strict=True)) for path, row in zip(batch, p, strict=True)}
            first = first or time.time() - STARTED
    return *passed(start), first, answers


def by_transformers(folder: Path) -> Measured:
    """A loop over transformers' image processor and model."""
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(projection_dim=512, patch_size=32)
    model, processor = CLIPVisionModelWithProjection(config).eval(), CLIPImageProcessor()
    paths = sorted((folder / "images").iterdir())
    start, first = clocks(), 0.0
    with torch.no_grad():
        for at in range(0, len(paths), BATCH):
            images = [Image.open(path) for path in paths[at : at + BATCH]]
            model(**processor(images=images, return_tensors="pt"))
            first = first or time.time() - STARTED
    return *passed(start), first, {}


def by_nothing(folder: Path) -> Measured:
    """Run the image tower on pixels that are ready."""
    from kdpl.classifier.classifier import load

    classifier, count = load(folder, "cpu"), len(list((folder / "images").iterdir()))
    pixels = torch.rand(BATCH, 3, *classifier.bundle.preprocessing.size)
    classifier.encoder.image_features(pixels)
    start, first = clocks(), time.time() - STARTED
    for at in range(0, count, BATCH):
        classifier.encoder.image_features(pixels[: count - at])
    return *passed(start), first, {}


def measure(folder: Path, way: str) -> dict:
    """Run one way in this process."""
    calls = {"open_clip": by_open_clip, "transformers": by_transformers, "tower alone": by_nothing}
    seconds, cpu, first, answers = calls[way](folder) if way in calls else by_kdpl(folder)
    count = len(list((folder / "images").iterdir()))
    row = {"way": way, "photos": count, "photos_per_s": count / seconds, "cpu_s": cpu / count, "first_s": first}
    (folder / f"{way}.json").write_text(json.dumps(answers), encoding="utf-8")
    exact = folder / "open_clip.json"  # photos decoded at their full size
    if answers and exact.is_file():
        expected = json.loads(exact.read_text(encoding="utf-8"))
        row["difference"] = max(abs(p - expected[path][n]) for path, ps in answers.items() for n, p in ps.items())
    return row | {"memory_GB": peak_memory()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=int, default=60)
    parser.add_argument("--size", type=int, nargs=2, default=[4000, 3000], help="width and height")
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--json", action="store_true", help="print the rows as one JSON object on the last line too")
    parser.add_argument("--measure", nargs=2, metavar=("FOLDER", "WAY"), help="one way alone, in this process")
    args = parser.parse_args()
    if args.measure:
        print_rows([measure(Path(args.measure[0]), args.measure[1])], True)
        return
    print(f"{machine()}; ViT-B/32-sized CLIP in fp32, batch {BATCH}, {args.photos} JPEGs of {args.size[0]} x {args.size[1]} px")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        os.environ["KDPL_CACHE"] = str(folder / "cache")
        write_prompts(folder, "ViT-B/32", args.classes)
        write_photos(folder / "images", args.photos, tuple(args.size))
        ways = [w for w in WAYS if w != "transformers" or importlib.util.find_spec("transformers")]
        order = ["open_clip", *(w for w in ways if w != "open_clip")]
        rows = {way: in_own_process(sys.argv[0], "--measure", folder, way)["rows"][0] for way in order}
    print_rows([rows[way] for way in ways], args.json)


if __name__ == "__main__":
    main()
