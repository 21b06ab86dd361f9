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
from kdpl.config.keys import ConfigError
from kdpl.config.teachers import check_teachers, prompt_sources, teacher_label, teacher_names
from kdpl.distill.given import PREFIX, GivenTeacher, read_probabilities
from kdpl.distill.prompted import PromptedTeacher
from kdpl.distill.teacher import Ensemble, Teacher
from kdpl.students import Student
from kdpl.text.templates import teacher_templates, template_for


def check_teacher(cfg: CfgNode) -> None:
    """Refuse teachers of TRAINER.KDPL that do not exist, or prompts that cannot be theirs, before weights are read.

    Raises:
        ConfigError: the message names the key, its value and what to do.
        ModelNameError, WeightsError: as `describe`.
    """
    options = cfg.TRAINER.KDPL
    if file := given_file(cfg):
        if options.TEACHER_TEMPLATES or options.TEACHER_PROMPTS:
            raise ConfigError(
                f"TRAINER.KDPL.TEACHER '{options.TEACHER}' is a table, which has neither sentences nor prompts: "
                "leave TEACHER_TEMPLATES and TEACHER_PROMPTS empty."
            )
        try:
            read_probabilities(file)
        except (ValueError, OSError) as error:
            raise ConfigError(f"TRAINER.KDPL.TEACHER: {error}") from error
        return
    check_teachers(options)
    names = teacher_names(options.TEACHER)
    architectures = [describe(name) for name in names]
    for source, bundle, name, architecture in zip(*_bundles(options), names, architectures, strict=False):
        where = f"TRAINER.KDPL.TEACHER_PROMPTS '{source}'"
        try:
            learner = bundle.student_class
            values = fitting_options(bundle, architecture, name)
        except BundleError as error:
            raise ConfigError(f"{where}: {error}") from error
        if bundle.decision.sentences:
            raise ConfigError(
                f"{where} uses hand-written sentences, which `kdpl fit` found to be better than its learned prompts: write "
                "them into a file and give that as TEACHER_TEMPLATES."
            )
        specific = learner.is_class_specific(values)
        if options.CLASS_AGNOSTIC and (specific or learner.text_depends_on_images):
            why = "are class-specific" if specific else "give every image text features of its own"
            raise ConfigError(
                f"{where} and TRAINER.KDPL.CLASS_AGNOSTIC True: the prompts of {bundle.variant} {why}, which a whole "
                "vocabulary cannot have. Choose prompts of another learner, such as CoOp with CSC False, or set CLASS_AGNOSTIC "
                "to False."
            )


def given_file(cfg: CfgNode) -> str:
    """Return the file of probabilities that is the teacher; empty: it is a CLIP."""
    value = cfg.TRAINER.KDPL.TEACHER
    return value.removeprefix(PREFIX) if value.startswith(PREFIX) else ""


def clip_teacher(cfg: CfgNode, trainer: str) -> None:
    """Refuse a table of probabilities for a trainer that needs a CLIP as the teacher."""
    if given_file(cfg):
        raise ConfigError(f"{trainer} needs a CLIP as the teacher, TRAINER.KDPL.TEACHER is '{cfg.TRAINER.KDPL.TEACHER}'.")


def _bundles(options: CfgNode) -> tuple[list[str], list[Bundle]]:
    """Return the sources of the teachers' prompts, and what they hold; empty without."""
    sources, bundles = prompt_sources(options.TEACHER_PROMPTS, teacher_names(options.TEACHER)), []
    for source in sources:
        try:
            bundles.append(read(source))
        except BundleError as error:
            raise ConfigError(f"TRAINER.KDPL.TEACHER_PROMPTS '{source}': {error}") from error
    return sources, bundles


def load_towers(cfg: CfgNode, precision: str, device: torch.device) -> list[Clip | Student]:
    """Load the CLIPs of TRAINER.KDPL.TEACHER, each with its learned prompts if it has some.

    Raises:
        ConfigError: two have the same weights, or prompts were learned for another CLIP.
    """
    options, loaded = cfg.TRAINER.KDPL, []
    names, (sources, bundles) = teacher_names(options.TEACHER), _bundles(options)
    clips = [load_clip(name, precision, device) for name in names]
    for i, clip in enumerate(clips):
        for other in clips[:i]:
            if clip.weights_digest == other.weights_digest:
                raise ConfigError(
                    f"TRAINER.KDPL.TEACHER '{options.TEACHER}': '{other.name}' and '{clip.name}' have the same weights, and a "
                    "teacher counts once. Remove one."
                )
    for source, bundle, clip in zip(sources, bundles, clips, strict=False):
        clip.bound_text(options.MAX_TEXT_ROWS)
        way_out = "Set TRAINER.KDPL.TEACHER to that CLIP, or choose prompts that were learned for this one."
        try:
            values = fitting_options(bundle, describe(clip.name), clip.name)
            loaded.append(learned_student(bundle, clip, values, clip.name, way_out))
        except BundleError as error:
            raise ConfigError(f"TRAINER.KDPL.TEACHER_PROMPTS '{source}': {error}") from error
    return loaded or clips


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
    pixels = tuple(cfg.INPUT.PIXEL_MEAN), tuple(cfg.INPUT.PIXEL_STD)
    dataset_sentence = template_for(cfg.DATASET.NAME, cfg.DATASET.TEMPLATE)
    templates = teacher_templates(cfg.TRAINER.KDPL.TEACHER_TEMPLATES, template, dataset_sentence)
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
