"""The teachers of TRAINER.KDPL: their names checked, their CLIPs and learned prompts loaded."""

from collections.abc import Sequence
from pathlib import Path

import torch
from yacs.config import CfgNode

from kdpl.bundle import Bundle, BundleError
from kdpl.bundle.hub import read
from kdpl.bundle.learned import fitting_options, learned_student
from kdpl.clip.loading import describe, load_clip
from kdpl.clip.model import Clip, effective_precision
from kdpl.config.checks import DATASET, IMAGENET, check_teachers, prompt_sources, read_sentences, teacher_label, teacher_names
from kdpl.config.keys import ConfigError
from kdpl.distill.given import PREFIX, GivenTeacher, read_probabilities
from kdpl.distill.teacher import Ensemble, PromptedTeacher, Teacher
from kdpl.students import Student
from kdpl.text.templates import imagenet_templates, template_for


def check_teacher(cfg: CfgNode) -> None:
    """Refuse teachers of TRAINER.KDPL that do not exist, or prompts that cannot be theirs, before weights are read.

    Raises:
        ConfigError: the message names the key, its value and what to do.
        ModelNameError, WeightsError: as `describe`.
        ValueError, OSError: as `read_probabilities`.
    """
    options = cfg.TRAINER.KDPL
    if file := given_file(cfg):
        if options.TEACHER_TEMPLATES or options.TEACHER_PROMPTS:
            raise ConfigError(
                f"TRAINER.KDPL.TEACHER '{options.TEACHER}' is a table, which has neither sentences nor prompts: "
                "leave TEACHER_TEMPLATES and TEACHER_PROMPTS empty."
            )
        read_probabilities(file)
        return
    check_teachers(options)
    for name in teacher_names(options.TEACHER):
        describe(name)
    for source, bundle, _ in _learned_prompts(options):
        if bundle.decision.sentences:
            raise ConfigError(
                f"TRAINER.KDPL.TEACHER_PROMPTS '{source}' uses hand-written sentences, which `kdpl fit` found to be better "
                "than its learned prompts: write them into a file and give that as TEACHER_TEMPLATES."
            )


def given_file(cfg: CfgNode) -> str:
    """Return the file of probabilities that is the teacher; empty: it is a CLIP."""
    value = cfg.TRAINER.KDPL.TEACHER
    return value.removeprefix(PREFIX) if value.startswith(PREFIX) else ""


def clip_teacher(cfg: CfgNode, trainer: str) -> None:
    """Refuse a table of probabilities for a trainer that needs a CLIP as the teacher."""
    if given_file(cfg):
        raise ConfigError(f"{trainer} needs a CLIP as the teacher, TRAINER.KDPL.TEACHER is '{cfg.TRAINER.KDPL.TEACHER}'.")


def _learned_prompts(options: CfgNode) -> list[tuple[str, Bundle, CfgNode]]:
    """Return the folders of the teachers' prompts, what they hold, and its options; empty without."""
    names, found = teacher_names(options.TEACHER), []
    for source, name in zip(prompt_sources(options.TEACHER_PROMPTS, names), names, strict=False):
        try:
            bundle = read(source)
            found.append((source, bundle, fitting_options(bundle, describe(name), name)))
        except BundleError as error:
            raise ConfigError(f"TRAINER.KDPL.TEACHER_PROMPTS '{source}': {error}") from error
    return found


def load_towers(cfg: CfgNode, precision: str, device: torch.device) -> list[Clip | Student]:
    """Load the CLIPs of TRAINER.KDPL.TEACHER, each with its learned prompts if it has some.

    Raises:
        BundleError: prompts were learned for another CLIP.
    """
    options, prompts = cfg.TRAINER.KDPL, _learned_prompts(cfg.TRAINER.KDPL)
    clips = [load_clip(name, precision, device) for name in teacher_names(options.TEACHER)]
    way_out = "Set TRAINER.KDPL.TEACHER to that CLIP, or choose TEACHER_PROMPTS that were learned for this one."
    for clip in clips if prompts else ():
        clip.text.max_rows = options.MAX_TEXT_ROWS
    pairs = zip(prompts, clips, strict=False)
    return [learned_student(bundle, clip, values, clip.name, way_out) for (_, bundle, values), clip in pairs] or clips


def teacher_over(
    cfg: CfgNode,
    towers: Sequence[Clip | Student],
    names: Sequence[str],
    template: str,
    logit_scale: str | float,
    cached: bool = False,
) -> Teacher | Ensemble:
    """Return the teacher of TRAINER.KDPL over a list of names, for images that are prepared as INPUT says.

    Args:
        towers: of `load_towers`.
        template: the sentence of TEACHER_TEMPLATES "".
        logit_scale, cached: as `Teacher` takes them.
    """
    pixels, value = (tuple(cfg.INPUT.PIXEL_MEAN), tuple(cfg.INPUT.PIXEL_STD)), cfg.TRAINER.KDPL.TEACHER_TEMPLATES
    if value in ("", DATASET):
        templates = [template_for(cfg.DATASET.NAME, cfg.DATASET.TEMPLATE) if value else template]
    else:
        templates = imagenet_templates() if value == IMAGENET else read_sentences(value)
    members = [
        Teacher(tower, names, templates, *pixels, logit_scale, cached)
        if isinstance(tower, Clip)
        else PromptedTeacher(tower, names, *pixels, logit_scale)
        for tower in towers
    ]
    return members[0] if len(members) == 1 else Ensemble(members)


def load_teacher(
    cfg: CfgNode,
    names: Sequence[str],
    template: str,
    device: torch.device,
    cached: bool = False,
    loaded: Sequence[Clip] | None = None,
) -> Teacher | Ensemble | GivenTeacher:
    """Load the frozen teacher of TRAINER.KDPL over a list of names, for images that are prepared as INPUT says.

    Args:
        template, cached: as `teacher_over` takes them.
        loaded: its CLIPs, if they are loaded already.
    """
    options = cfg.TRAINER.KDPL
    if file := given_file(cfg):
        print(f"Reading the teacher's probabilities from '{file}'")
        return GivenTeacher(read_probabilities(file))
    precision = effective_precision(options.PREC, device.type, frozen=True)
    if loaded is None:
        print(f"Loading teacher CLIP (backbone: {label_of(cfg)}, precision: {precision})")
    towers = load_towers(cfg, precision, device) if loaded is None else loaded
    teacher = teacher_over(cfg, towers, names, template, options.TEACHER_LOGIT_SCALE, cached)
    for member in teacher.members if options.COMPILE else ():
        member.clip.compile()
    return teacher


def label_of(cfg: CfgNode) -> str:
    """Return what results and reports call the teacher of TRAINER.KDPL."""
    options = cfg.TRAINER.KDPL
    if file := given_file(cfg):
        return f"{PREFIX}{Path(file).name}"
    return teacher_label(options.TEACHER, options.TEACHER_TEMPLATES, options.TEACHER_PROMPTS)
