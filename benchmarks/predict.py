"""predict.py on many images: the share of its time that the image tower takes, and memory that does not grow.

The CLIP has a real model's size and random weights; the images are JPEGs, read and resized by threads while the tower computes.
Times begin when the model is loaded. "share" is of the wall time, "tower alone s" what the tower takes for as many images
without anything beside it, and "memory GB" the most that was held beyond the loaded model.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from common import ROOT, in_own_process, machine, print_rows, random_clip, seconds_per_call
from PIL import Image
from safetensors.torch import save_file

from kdpl import predict
from kdpl.bundle import Bundle, Preprocessing, write_bundle
from kdpl.classifier.predictions.run import Run
from kdpl.clip.inputs import OPENAI_MEAN, OPENAI_STD
from kdpl.clip.loading import load_clip
from kdpl.config.merging import learner_options
from kdpl.photos.prompts import classifier_of
from kdpl.students import CoOp

DISTINCT = 50  # images drawn; the others are copies under other names


def write_prompts(folder: Path, name: str, classes: int) -> None:
    """Write a CLIP with random weights and untrained prompts for it."""
    clip = random_clip(name, seed=0)
    save_file({k: v.half().contiguous() for k, v in clip.model.state_dict().items()}, folder / "clip.safetensors")
    clip = load_clip(str(folder / "clip.safetensors"))
    names = (ROOT / "datasets/embedded/vocabulary.txt").read_text(encoding="utf-8").split("\n")[:classes]
    options = learner_options("COOP", {"CTX_INIT": "a photo of a", "PREC": "fp32"})
    preprocessing = Preprocessing((clip.resolution,) * 2, "bicubic", OPENAI_MEAN, OPENAI_STD)
    facts = {"variant": "CoOp", "trainer": "KDPL_CoOp", "dataset": "", "template": "a photo of a {}.", "teacher": None}
    learned = CoOp(clip, options, names).learned.state_dict()
    write_bundle(
        folder,
        Bundle(
            learned, backbone=clip.name, backbone_sha256=clip.weights_digest, options=dict(options),
            preprocessing=preprocessing, classnames=names, class_agnostic=False, epoch=0, results=[], config="", **facts,
        ),
    )  # fmt: skip


def write_images(folder: Path, count: int, side: int) -> None:
    """Write JPEGs with coarse shapes and fine texture, whose size is that of photos."""
    folder.mkdir()
    draws = np.random.default_rng(0)
    for i in range(min(count, DISTINCT)):
        coarse = Image.fromarray(draws.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize(
            (side, side), Image.Resampling.BICUBIC
        )
        noisy = np.asarray(coarse) + draws.normal(0, 12, (side, side, 3))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{i:05d}.jpg", quality=90)
    for i in range(DISTINCT, count):
        (folder / f"{i:05d}.jpg").write_bytes((folder / f"{i % DISTINCT:05d}.jpg").read_bytes())


def held(what: str) -> int:
    """Return the memory that this process holds ("VmRSS") or the most that it held ("VmHWM") in bytes, as Linux counts it."""
    status = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in status if line.startswith(what)).split()[1])


def measure(args: argparse.Namespace) -> dict[str, float]:
    """Run predict.py's own functions once, with a table and a file of JSON lines as outputs."""
    folder = Path(args.measure)
    outputs = ["--csv", str(folder / "out.csv"), "--json", str(folder / "out.jsonl")]
    outputs += ["--html", str(folder / "out.html")] if args.html else []
    outputs += ["--restart", "--full-size", "--no-cache", "--batch-size", str(args.batch), "--device", args.device]
    command = predict.parse_args([str(folder), str(folder / "images"), *outputs])
    images = predict.check(command).images[: args.images[0]]
    classifier = classifier_of(command, args.device)
    for _ in classifier.stream(images[: args.batch], args.batch):  # the class names' features, and what is allocated once
        pass
    classifier.seconds.update(dict.fromkeys(classifier.seconds, 0.0))
    before = held("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again
    start = time.perf_counter()
    Run(classifier, command, len(images))(images)
    seconds = time.perf_counter() - start
    peak = held("VmHWM") - before
    batch = torch.zeros(args.batch, 3, *classifier.bundle.preprocessing.size, device=classifier.device)
    with torch.inference_mode():
        (of_a_batch,) = seconds_per_call(3, lambda: classifier.student.image_features(batch))
    spent = classifier.seconds
    return {
        "images": len(images), "seconds": seconds, "tower_s": spent["model"], "share": spent["model"] / seconds,
        "tower_alone_s": of_a_batch * len(images) / args.batch, "waiting_s": spent["waiting"],
        "decoding_s": spent["decoding"], "memory_GB": peak / 1e9,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, nargs="+", default=[250, 1000])
    parser.add_argument("--side", type=int, default=224, help="of the images, in pixels")
    parser.add_argument("--model", default="ViT-B/32", help="the OpenAI ViT whose sizes the CLIP has")
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--html", action="store_true", help="write the gallery too")
    parser.add_argument("--json", action="store_true", help="print the rows as one JSON object on the last line too")
    parser.add_argument("--measure", metavar="FOLDER", help="one number of images alone, in this process")
    args = parser.parse_args()
    if args.measure:
        print_rows([measure(args)], True)
        return
    print(f"{machine(args.device)}; {args.model}-sized CLIP in fp32, batch {args.batch}, JPEGs of {args.side} px")
    with tempfile.TemporaryDirectory() as folder:
        write_prompts(Path(folder), args.model, args.classes)
        write_images(Path(folder, "images"), max(args.images), args.side)
        own = ["--measure", folder, "--batch", args.batch, "--device", args.device, *(["--html"] if args.html else [])]
        rows = [in_own_process(__file__, *own, "--images", images)["rows"][0] for images in args.images]
    print_rows(rows, args.json)


if __name__ == "__main__":
    main()
