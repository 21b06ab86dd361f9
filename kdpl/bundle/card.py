"""The card of a bundle, in Markdown: what was learned from what, how well it does, and how it is used."""

import json
import re
from typing import TYPE_CHECKING

from kdpl.common.outputs import BUNDLE
from kdpl.common.safe_text import on_one_line
from kdpl.students import Student

if TYPE_CHECKING:
    from kdpl.bundle import Bundle

CARD_NAME = "MODEL_CARD.md"
HEADER = """---
library_name: kdpl
pipeline_tag: image-classification
tags: [clip, prompt-learning, zero-shot-image-classification, {variant}]
license: {license}
---"""
HEAD = (
    "It is a head, no prompts: the image tower of the CLIP stays as it is, and each name's score is computed from the image "
    "features by kernel ridge regression, which was solved in closed form to agree with the teacher on {photos}. "
    "Scores times a factor, through a softmax, are the probabilities."
)


def model_card(bundle: "Bundle", address: str = BUNDLE, license: str = "unknown") -> str:
    """Return the card of a bundle, in Markdown: a YAML header for the Hub, and how the bundle is loaded from its address."""
    learner, backbone, decision = Student.known.get(bundle.variant), _plain(bundle.backbone), bundle.decision
    head = learner is not None and learner.closed_form
    about = [f"`{BUNDLE}` makes the CLIP model {backbone} a classifier of images over the class names below."]
    if head:
        about.append(HEAD.format(photos=_plain(bundle.dataset)))
    if learner and learner.is_class_specific(bundle.options) and not decision.sentences:
        about.append("It knows these class names alone: others cannot be set.")
    else:
        about.append("Other class names may be set.")
    if decision.sentences:
        about.append("`kdpl fit` found hand-written sentences that agree better with the teacher: they are used, see below.")
    if learner and learner.__module__.partition(".")[0] != "kdpl":
        about.append(f"{_plain(bundle.variant)} is not a learner of kdpl: import its file first, or name it in `--learner`.")
    lines = [
        HEADER.format(variant=json.dumps(bundle.variant.lower()), license=json.dumps(license)),
        f"# {'Head' if head else 'Prompts'} for {backbone}", "", " ".join(about), "",
        "```python", "import kdpl", "", f'clf = kdpl.load("{address}")', 'probabilities = clf(["photo.jpg"])  # (N, C)',
        "print(clf.classnames)", "```", "",
        "| | |", "| --- | --- |", *(f"| {key} | {_plain(value)} |" for key, value in _facts(bundle, head).items()), "",
        "## Accuracy", "", *_accuracy(bundle), "",
        *_comparison(bundle), *_decision(bundle),
        "## Class names", "", *([f"- {_plain(name)}" for name in bundle.classnames] or ["None were known in training."]), "",
        "## Configuration", "", *(f"    {on_one_line(line)}" for line in bundle.config.splitlines()), "",
    ]  # fmt: skip
    return "\n".join(lines)


def _facts(bundle: "Bundle", head: bool) -> dict[str, str]:
    teacher = bundle.teacher or "none: from labels"
    if bundle.teacher and not re.search(", (sentences|prompts) ", teacher):
        teacher += f", with the sentence “{bundle.template}”"
    run = f"{bundle.manifest['digest']}, a digest of all that determines these prompts" if bundle.manifest else "not recorded"
    learned = ", ".join(f"{name} {tuple(value.shape)}" for name, value in bundle.parameters.items())
    return {
        "Learned by": f"{bundle.trainer}{'' if head else f' in {bundle.epoch} epochs'}, kdpl {bundle.kdpl_version}",
        "Student": f"{bundle.backbone}, frozen; SHA-256 of its weights in fp16: {bundle.backbone_sha256}",
        "Teacher": teacher,
        "Trained on": bundle.dataset + (", without class names" if bundle.class_agnostic else ""),
        "Run": run,
        "Options": ", ".join(f"{key} {value!r}" for key, value in bundle.options.items()),
        "Learned parameters": f"{sum(v.numel() for v in bundle.parameters.values()):,}: {learned}",
    }


def _accuracy(bundle: "Bundle") -> list[str]:
    if not bundle.results:
        return ["Not measured: there were no labelled test images, or no test was asked for."]
    head = ["| data set | split | classes | images | accuracy (%) | macro F1 (%) |", "| --- | --- | --- | --- | --- | --- |"]
    return head + [
        f"| {_plain(r['dataset'])} | {_plain(r['split'])} | {_plain(r['classes'])} ({r['num_classes']}) | {r['num_images']:,} "
        f"| {r['accuracy']:.2f} | {r['macro_f1']:.2f} |"
        for r in bundle.results
    ]


def _comparison(bundle: "Bundle") -> list[str]:
    if not (comparison := bundle.comparison):
        return []
    rows = [
        f"| {_plain(row['prompts'])} | {row['agreement']:.1f} ± {row['error']:.1f} | {row['divergence']:.3f} |"
        for row in comparison["rows"]
    ]
    head = ["| prompts | agreement (%) | divergence |", "| --- | --- | --- |"]
    about = f"On {comparison['photos']:,} held-out photos, without labels: how often the likeliest name is the teacher's, with "
    about += "twice the standard error, and the symmetric divergence from the teacher's probabilities."
    return ["## Agreement with the teacher", "", about, "", *head, *rows, "", _plain(comparison["verdict"]), ""]


def _decision(bundle: "Bundle") -> list[str]:
    decision, lines = bundle.decision, []
    if decision.sentences:
        shown = ", ".join(f"“{_plain(s)}”" for s in decision.sentences[:3]) + (", ..." if len(decision.sentences) > 3 else "")
        lines.append(f"- Used in place of the learned prompts: {len(decision.sentences)} hand-written sentences, {shown}")
    if decision.temperature is not None:
        lines.append(f"- Probabilities: the softmax of the logits over {decision.temperature:.3f}, fitted to the teacher's")
    if decision.threshold is not None:
        lines.append(f"- Rejected: a score below {decision.threshold:.3f} against {len(decision.background)} other names")
    return ["## Use", "", *lines, ""] if lines else []


def _plain(text: str) -> str:
    """Return text that Markdown shows as it is, on one line: no mark-up, no address that becomes a link."""
    text = on_one_line(" ".join(str(text).split()))
    text = re.sub(r"([\\`*_\[\]<>#|&~!$])", r"\\\1", text)
    text = re.sub(r"(?i)\b(https?|ftp|mailto|www)(?=[:.])", r"\1<!-- -->", text)
    return re.sub(r"@(?=\w)", "@<!-- -->", text)
