# ruff: noqa: E402, I001  the hub's folder is chosen before it is read, see shrunk.py
"""Hold every architecture that open_clip lists against the library, and print what kdpl can do with it.

    python tests/models/walk.py [--names ViT-B-32 ...] [--precisions fp16 bf16]

Each is shrunk to three layers a tower, with random weights, biases and statistics. The teacher's features must be the library's
in fp32 and in half precision; a student's text features with the initial words must be the library's, and with random prompts,
deep ones too, its features and gradients must be those of the library's own pass (reference.py); or it is refused from the
configuration alone. The table is that of docs/models.md.
"""

import argparse
import multiprocessing
import re
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2]), str(Path(__file__).parent)]

from narrow import LAYERS
from reference import student_output
from shrunk import encode, library_model, library_tokenizer, shrink

import open_clip
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tabulate import tabulate
from torch import Tensor, nn

import kdpl  # noqa: F401  it makes `dassl` importable
from kdpl import students
from kdpl.clip.weights import WeightsError
from kdpl.clip.loading import describe, load_clip
from kdpl.clip.model import Clip
from kdpl.clip.names import Architecture
from kdpl.config.defaults import learner_options
from kdpl.students import Student
from kdpl.text.prompts import sentence_features

KINDS = {  # of learners, by the towers in whose layers they have prompts: columns of the table
    (): "learners of names and context",
    ("TEXT",): "of later text layers",
    ("VISION",): "of image tokens",
    ("TEXT", "VISION"): "of both towers",
}
NAMES = ["green salad", "hot_dog", "ice cream cone"]
SHORT_NAMES = ["X", "dog", "hot"]  # for text towers of 16 tokens
WORDS = "a photo of a"
HALF = {"fp16": 2e-2, "bf16": 2e-2, "amp": 2e-2}
FAMILIES = (  # by the beginning of the name, or a pattern
    ("CoCa", r"coca_(?!roberta)"),
    ("CoCa, RoBERTa text", "coca_roberta"),
    ("ConvNeXt", "convnext"),
    ("EVA01, EVA02", "EVA"),
    ("MobileCLIP-S, MobileCLIP2-S", r"MobileCLIP2?-S"),
    ("MobileCLIP-B, MobileCLIP2-B", r"MobileCLIP2?-B"),
    ("MobileCLIP2-L", "MobileCLIP2-L"),
    ("mT5 text", "mt5"),
    ("NLLB text", r"nllb-clip-\w+$"),
    ("NLLB text, SigLIP image", r"nllb-clip-\w+-siglip"),
    ("PE-Core", "PE-Core"),
    ("ResNet", "RN"),
    ("RoBERTa, XLM-RoBERTa text", r"(xlm-)?roberta"),
    ("Swin", "swin"),
    ("SigLIP", r"ViT.*SigLIP(?!2)"),
    ("SigLIP2", r"ViT.*SigLIP2"),
    ("CLIPA", r"ViT.*CLIPA"),
    ("MetaCLIP2 (worldwide)", r"ViT.*worldwide"),
    ("ViT with layer scale (ViT-M-16-alt)", "ViT-M-16-alt"),
    ("ViTamin", "ViTamin"),
    ("ViT without class token (gap)", "vit_medium"),
    ("ViT with relative positions", "vit_relpos"),
    ("ViT", "ViT-"),
)


def kind_of(learner: type[Student]) -> str:
    """Return the column of a learner: options tell in which towers it has prompts."""
    towers = {tower for tower in ("TEXT", "VISION") for option in learner.defaults if option.endswith(tower)}
    return KINDS[("TEXT", "VISION") if {"PROMPT_DEPTH", "ADAPTER_DEPTH"} & {*learner.defaults} else tuple(sorted(towers))]


PROMPTED = [learner for learner in students.STEPPED if not learner.has_own_logits()]  # the others are over frozen features
LEARNERS = {learner.__name__: kind_of(learner) for learner in PROMPTED}


@dataclass
class Verdict:
    """What kdpl can do with one architecture."""

    name: str
    tokenizer: str = ""
    precision: str = ""
    learners: dict[str, str] = field(default_factory=dict)  # "yes", or why it is refused


def relative(ours: Tensor, theirs: Tensor) -> float:
    """Return the largest error of a row, as a part of the row's length."""
    ours, theirs = ours.detach().float(), theirs.detach()
    return float(((ours - theirs).norm(dim=-1) / theirs.norm(dim=-1)).max())


def check(name: str, precisions: tuple[str, ...] = tuple(HALF)) -> Verdict:
    """Hold one architecture against the library.

    Raises:
        AssertionError: a feature is not the library's, a gradient is not finite, or something else than what is documented
            is refused.
    """
    tags = open_clip.list_pretrained_tags_by_model(name)
    tag = tags[0] if tags else ""
    try:
        architecture = describe(f"{name}:{tag}" if tag else _named(name, tag, Path(__file__)))
    except WeightsError as error:
        assert "pip install 'kdpl[hf]'" in str(error), error
        return Verdict(name, "needs transformers", "-", dict.fromkeys(LEARNERS, "needs transformers"))
    library = library_model(name, tag)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "weights.safetensors")
        save_file({k: v.contiguous().clone() for k, v in library.state_dict().items()}, file)
        clip = load_clip(_named(name, tag, file))
        verdict = Verdict(name, type(clip.tokenizer).__name__)
        images = torch.randn(2, 3, clip.resolution, clip.resolution, generator=torch.Generator().manual_seed(1))
        sentences = [f"{WORDS} {n.replace('_', ' ')}." for n in names_for(architecture)]
        ids = library_tokenizer(name)(sentences)
        assert torch.equal(ids, clip.tokenizer(sentences))
        images_0, texts_0 = encode(library, images, ids)
        check_features(clip, images, sentences, images_0, texts_0, 1e-5)
        verdict.learners = {
            learner: check_learner(clip, learner, architecture, images, texts_0, library=library) for learner in LEARNERS
        }
        for precision in precisions:
            half = load_clip(_named(name, tag, file), precision)
            check_features(half, images, sentences, images_0, texts_0, HALF[precision])
            verdict.precision = "autocast" if precision == "fp16" and half.autocast_dtype else verdict.precision or "half"
            for learner in ("CoOp", "VPT"):
                if verdict.learners[learner] == "yes":
                    check_learner(half, learner, architecture, images, texts_0, HALF[precision])
    return verdict


def _named(name: str, tag: str, file: Path) -> str:
    return f"{name}:{tag}:{file}" if tag else f"{name}:{file}"


def check_features(clip: Clip, images: Tensor, sentences: list[str], images_0: Tensor, texts_0: Tensor, bound: float) -> None:
    """Hold a teacher's features against the library's."""
    with torch.inference_mode(), clip.autocast(frozen=True):
        ours = clip.image_features(images)
    assert relative(ours, images_0) < bound, ("image", clip.name, clip.dtype, relative(ours, images_0))
    ours = sentence_features(clip, sentences, normalize=False)
    assert relative(ours, texts_0) < bound, ("text", clip.name, clip.dtype, relative(ours, texts_0))


def check_learner(
    clip: Clip,
    learner: str,
    architecture: Architecture,
    images: Tensor,
    texts_0: Tensor,
    bound: float = 1e-5,
    library: nn.Module | None = None,
) -> str:
    """Return "yes", or what of a learner is refused from the configuration alone.

    Args:
        library: open_clip's own model, for the features and gradients of random prompts; None: they must be finite.
    """
    kind: type[Student] = getattr(students, learner)
    options = {"PREC": "fp32", **({"CTX_INIT": WORDS} if "CTX_INIT" in kind.defaults else {})}
    options |= {k: LAYERS for k in kind.defaults if k.startswith("PROMPT_DEPTH")}
    options |= {k: 4 for k in kind.defaults if k in ("N_CTX", "N_CTX_TEXT")}
    options = learner_options(kind.node, options)
    try:
        kind.check(options, architecture, clip.name)
    except ValueError as error:
        assert f"TRAINER.{kind.node}" in str(error) and f"'{clip.name}'" in str(error), error
        shallow = learner_options(kind.node, {**options, **{k: 1 for k in options if k.startswith("PROMPT_DEPTH")}})
        try:
            kind.check(shallow, architecture, clip.name)
        except ValueError:
            return "no"
        options = shallow
    torch.manual_seed(0)
    names = names_for(architecture)
    student = kind(clip, options, names)
    prepared = student.prepare(names)
    if LEARNERS[learner] in (KINDS[()], KINDS[("VISION",)]) and not kind.text_depends_on_images:
        with torch.no_grad(), clip.autocast():
            ours = student.text_features(prepared)
        error = relative(ours, F.normalize(texts_0, dim=-1))
        assert error < bound, (learner, clip.name, clip.dtype, error)
    if library is None:
        with clip.autocast():
            output = student(images, prepared)
        torch.logsumexp(output.logits, -1).sum().backward()
        for key, value in student.learned.named_parameters():
            assert value.grad is not None and value.grad.isfinite().all(), (learner, clip.name, key)
        assert any(value.grad.any() for value in student.learned.parameters()), (learner, clip.name)
    else:
        check_prompts(student, library, images, names)
    depth = options.get("PROMPT_DEPTH_TEXT", options.get("PROMPT_DEPTH", LAYERS))
    return "yes" if depth == LAYERS else "depth 1"


def check_prompts(student: Student, library: nn.Module, images: Tensor, names: list[str]) -> None:
    """Hold a student with random prompts against the library's own pass: features, and gradients of all that is learned."""
    parameters = list(student.learned.parameters())
    for value in parameters:
        nn.init.normal_(value, std=0.1)
    output = student(images, student.prepare(names))
    ours = output.image_features, output.text_features
    theirs = student_output(library, student, names, images)
    gradients = []
    for image, text in (ours, theirs):
        loss = torch.einsum("bd,bcd->bc", image, text.expand(len(image), -1, -1)).exp().sum()
        gradients.append(torch.autograd.grad(loss, parameters))
    for a, b in zip(ours, theirs, strict=True):
        assert relative(a, b) < 1e-5, (student.node, student.clip.name, relative(a, b))
    for (key, _), a, b in zip(student.learned.named_parameters(), *gradients, strict=True):
        assert (a - b).norm() < 1e-3 * b.norm(), (student.node, student.clip.name, key, float((a - b).norm() / b.norm()))


def names_for(architecture: Architecture) -> list[str]:
    return NAMES if architecture.context_length > 16 else SHORT_NAMES


def family(name: str) -> str:
    return next(label for label, pattern in FAMILIES if re.match(pattern, name))


def table(verdicts: list[Verdict]) -> str:
    """Return the verdicts by family, as a table in Markdown."""
    rows = []
    for label, _ in FAMILIES:
        some = [v for v in verdicts if family(v.name) == label]
        if not some:
            continue
        same = {(v.precision, v.tokenizer, tuple(v.learners.items())) for v in some}
        for precision, tokenizer, learners in sorted(same):
            count = sum((v.precision, v.tokenizer, tuple(v.learners.items())) == (precision, tokenizer, learners) for v in some)
            can = dict(learners)
            said = [" / ".join(sorted({can[k] for k in can if LEARNERS[k] == kind})) for kind in KINDS.values()]
            rows.append([label, count, "yes", *said, precision, tokenizer])
    head = ["family", "architectures", "teacher", *KINDS.values(), "fp16", "tokenizer"]
    return tabulate(rows, head, tablefmt="github")


def attempt(name: str, precisions: tuple[str, ...]) -> Verdict | str:
    """Return the verdict on an architecture, or what is wrong with it."""
    try:
        return check(name, precisions)
    except Exception as error:  # each is reported, and the others are still walked
        return f"{type(error).__name__}: {error}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--names", nargs="+", default=[], help="architectures (default: all)")
    parser.add_argument("--precisions", nargs="+", choices=HALF, default=list(HALF), help="beside fp32 (default: all)")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    args = parser.parse_args()
    shrink()
    names = args.names or open_clip.list_models()
    verdicts, wrong = [], 0
    with ProcessPoolExecutor(args.jobs, multiprocessing.get_context("spawn"), shrink) as pool:
        found = pool.map(attempt, names, [tuple(args.precisions)] * len(names))
        for name, verdict in zip(names, found, strict=True):
            print(f"{name}: {verdict}", file=sys.stderr, flush=True)
            if isinstance(verdict, str):
                wrong += 1
            else:
                verdicts.append(verdict)
    print(table(verdicts))
    print(f"\n{len(verdicts)} architectures held, {wrong} wrong")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
