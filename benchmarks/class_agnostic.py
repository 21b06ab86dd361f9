"""What class-agnostic training costs beside class-aware training: a step's time and memory, the vocabulary's features.

Both CLIPs are of ViT-B/32's size, or of another, and have random weights. Steps of the two kinds are timed in turns in one
process; peak memory is that of a process which takes steps of one kind alone.
"""

import argparse
import os
import random
import tempfile
import time
from collections.abc import Callable

import torch
from common import in_own_process, machine, peak_memory, print_rows, published_options, random_clip, seconds_per_call

import kdpl.students
from kdpl.distill.objective import Distillation
from kdpl.distill.teacher import Teacher
from kdpl.text.feature_cache import cached_text_features
from kdpl.text.templates import DEFAULT
from kdpl.text.vocabulary import load_vocabulary

KINDS = ("class-aware", "class-agnostic")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--learner", default="CoOp", choices=["CoOp", "CoCoOp", "VPT", "MaPLe", "PromptSRC", "IVLP"])
    parser.add_argument("--student", default="ViT-B/32", help="the OpenAI ViT whose sizes the student has, or small")
    parser.add_argument("--teacher", default="ViT-B/32", help="the same of the teacher")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--names", type=int, default=1000, help="class names, and K_MAX")
    parser.add_argument("--vocabulary", type=int, default=20000, help="names of imagenet21k in the vocabulary")
    parser.add_argument("--steps", type=int, default=5, help="of which the median counts")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", action="store_true", help="print the rows as one JSON object on the last line too")
    parser.add_argument("--measure", choices=["vocabulary", "time", *KINDS], help="one thing alone, in this process")
    args = parser.parse_args()
    if args.measure:
        print_rows([measure(args)], True)
        return
    print(f"{machine(args.device)}; {args.learner}, batch {args.batch}, teacher of {args.teacher}'s size")
    own = [x for k, v in vars(args).items() if k not in ("json", "measure") for x in (f"--{k}", v)]
    with tempfile.TemporaryDirectory() as cache:
        os.environ["KDPL_CACHE"] = cache
        figures = {}  # the vocabulary first: its features are found by the others
        for what in ("vocabulary", "time", *KINDS):
            figures |= in_own_process(__file__, *own, "--measure", what)["rows"][0]
    aware, agnostic = (figures[f"{kind}_seconds"] for kind in KINDS)
    rows = [
        {"what": "step, class-aware", "names": args.names, "seconds": aware, "ratio": 1.0},
        {"what": "step, class-agnostic", "names": args.vocabulary, "seconds": agnostic, "ratio": agnostic / aware},
    ]
    for row, kind in zip(rows, KINDS, strict=True):
        row["peak_gb"] = figures[f"{kind}_gb"]
    rows += [
        {"what": f"vocabulary features, {state}", "names": args.vocabulary, "seconds": figures[state]}
        for state in ("cold", "warm")
    ]
    print_rows(rows, args.json)


def measure(args: argparse.Namespace) -> dict[str, float]:
    if args.measure == "vocabulary":
        return vocabulary_seconds(args)
    if args.measure == "time":
        seconds = seconds_per_call(args.steps, *(make_step(args, kind) for kind in KINDS))
        return {f"{kind}_seconds": s for kind, s in zip(KINDS, seconds, strict=True)}
    seconds_per_call(1, make_step(args, args.measure))
    return {f"{args.measure}_gb": peak_memory()}


def vocabulary_names(args: argparse.Namespace) -> list[str]:
    names = load_vocabulary("imagenet21k")
    random.Random(0).shuffle(names)
    return names[: args.vocabulary]


def vocabulary_seconds(args: argparse.Namespace) -> dict[str, float]:
    """Time the teacher's text features of the vocabulary, computed and found."""
    clip, names = random_clip(args.teacher, 2, args.device), vocabulary_names(args)
    durations = []
    for _ in range(2):
        start = time.perf_counter()
        cached_text_features(clip, names, DEFAULT)
        durations.append(time.perf_counter() - start)
    return {"cold": durations[0], "warm": durations[1]}


def make_step(args: argparse.Namespace, kind: str) -> Callable[[], None]:
    """Return a function that takes one training step: the objective, its gradient, the update."""
    clip, vocabulary = random_clip(args.student, 1, args.device), vocabulary_names(args)
    class_names = vocabulary[: args.names]
    names, k_max = (vocabulary, args.names) if kind == "class-agnostic" else (class_names, None)
    student = getattr(kdpl.students, args.learner)(clip, published_options(args.learner), class_names)
    student.learned.to(args.device)
    optimizer = torch.optim.SGD(student.learned.parameters(), lr=0.002, momentum=0.9)
    teacher_clip = random_clip(args.teacher, 2, args.device)
    features = cached_text_features(teacher_clip, names, DEFAULT)
    teacher = Teacher(teacher_clip, names, DEFAULT, clip.mean, clip.std, text_features=features)
    objective = Distillation(student, teacher, names, k_max=k_max)
    generator = torch.Generator().manual_seed(3)

    def step() -> None:
        images = torch.randn(args.batch, 3, clip.resolution, clip.resolution, generator=generator).to(args.device)
        loss, _ = objective(images)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


if __name__ == "__main__":
    main()
