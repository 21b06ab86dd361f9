"""The card of a bundle, in Markdown: what was learned from what, how well it does, and how it is used."""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kdpl.bundle.decision import Decision
from kdpl.common.safe_text import on_one_line
from kdpl.config.teachers import names_its_texts
from kdpl.students import Student

if TYPE_CHECKING:
    from kdpl.bundle import Bundle

FILE_NAME = "prompts.safetensors"
CARD_NAME = "MODEL_CARD.md"
HEADER = "---\nlibrary_name: kdpl\npipeline_tag: image-classification\ntags: [clip, prompt-learning]\n---"


def model_card(bundle: "Bundle", header: str = HEADER, address: str = FILE_NAME) -> str:
    """Return the card of a bundle, in Markdown: a YAML header, and how the bundle is loaded from its address."""
    learned = ", ".join(f"{name} {tuple(value.shape)}" for name, value in bundle.parameters.items())
    teacher = bundle.teacher or "none: from labels"
    if bundle.teacher and not names_its_texts(teacher):
        teacher += f", with the sentence “{bundle.template}”"
    facts = {
        "Learned by": f"{bundle.trainer} in {bundle.epoch} epochs, kdpl {bundle.kdpl_version}",
        "Student": f"{bundle.backbone}, frozen; SHA-256 of its weights in fp16: {bundle.backbone_sha256}",
        "Teacher": teacher,
        "Trained on": bundle.dataset + (", without class names" if bundle.class_agnostic else ""),
        "Run": f"{bundle.manifest['digest']}, a digest of all that determines these prompts"
        if bundle.manifest
        else "not recorded",
        "Options": ", ".join(f"{key} {value!r}" for key, value in bundle.options.items()),
        "Learned parameters": f"{sum(v.numel() for v in bundle.parameters.values()):,}: {learned}",
    }
    learner = Student.known.get(bundle.variant)
    specific = learner and learner.is_class_specific(bundle.options) and not bundle.decision.sentences
    others = "These prompts are class-specific: others cannot be set." if specific else "Other class names may be set."
    if bundle.decision.sentences:
        others += " `kdpl fit` found hand-written sentences that agree better with the teacher: they are used, see below."
    if learner and learner.__module__.partition(".")[0] != "kdpl":
        others += f" {_plain(bundle.variant)} is not a learner of kdpl: import its file first, or name it in `--learner`."
    lines = [
        header,
        f"# Prompts for {_plain(bundle.backbone)}", "",
        f"`{FILE_NAME}` makes the CLIP model {_plain(bundle.backbone)} a classifier of images over the class names below. "
        f"{others}", "",
        "```python", "import kdpl", "", f'clf = kdpl.load("{address}")', 'probabilities = clf(["photo.jpg"])  # (N, C)',
        "print(clf.classnames)", "```", "",
        "| | |", "| --- | --- |", *(f"| {key} | {_plain(value)} |" for key, value in facts.items()), "",
        "## Accuracy", "", *_accuracy(bundle.results), "",
        *_comparison(bundle.comparison), *_decision(bundle.decision),
        "## Class names", "", *([f"- {_plain(name)}" for name in bundle.classnames] or ["None were known in training."]), "",
        "## Configuration", "", *(f"    {on_one_line(line)}" for line in bundle.config.splitlines()), "",
    ]  # fmt: skip
    return "\n".join(lines)


def _accuracy(results: Sequence[Mapping[str, Any]]) -> list[str]:
    if not results:
        return ["Not measured: there were no labelled test images, or no test was asked for."]
    head = ["| data set | split | classes | images | accuracy (%) | macro F1 (%) |", "| --- | --- | --- | --- | --- | --- |"]
    return head + [
        f"| {_plain(r['dataset'])} | {_plain(r['split'])} | {_plain(r['classes'])} ({r['num_classes']}) | {r['num_images']:,} "
        f"| {r['accuracy']:.2f} | {r['macro_f1']:.2f} |"
        for r in results
    ]


def _comparison(comparison: Mapping[str, Any]) -> list[str]:
    if not comparison:
        return []
    rows = [
        f"| {_plain(row['prompts'])} | {row['agreement']:.1f} ± {row['error']:.1f} | {row['divergence']:.3f} |"
        for row in comparison["rows"]
    ]
    head = ["| prompts | agreement (%) | divergence |", "| --- | --- | --- |"]
    about = f"On {comparison['photos']:,} held-out photos, without labels: how often the likeliest name is the teacher's, with "
    about += "twice the standard error, and the symmetric divergence from the teacher's probabilities."
    return ["## Agreement with the teacher", "", about, "", *head, *rows, "", _plain(comparison["verdict"]), ""]


def _decision(decision: Decision) -> list[str]:
    lines = []
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
