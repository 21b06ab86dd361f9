"""The settings of teachers: which CLIPs, with which sentences or prompts. Read and checked before anything is loaded."""

import os
from pathlib import Path

from yacs.config import CfgNode

from kdpl.common.messages import did_you_mean
from kdpl.common.safe_text import UnsafeTextError, read_text
from kdpl.config.keys import ConfigError

SEPARATOR = " + "  # between several teachers, and between their prompts
DATASET, IMAGENET = "dataset", "imagenet"  # words of TEACHER_TEMPLATES
SENTENCES_MARK, PROMPTS_MARK = ", sentences ", ", prompts "  # in the label of a teacher


def listed(value: str) -> list[str]:
    """Return the parts of a value that " + " separates; one that is itself an existing file or folder is not taken apart."""
    return [value] if os.path.exists(os.path.expanduser(value)) else [part.strip() for part in value.split(SEPARATOR)]


def teacher_names(value: str, key: str = "TRAINER.KDPL.TEACHER") -> list[str]:
    """Return the names of the CLIPs in TRAINER.KDPL.TEACHER: one, or several that " + " separates.

    Raises:
        ConfigError: one of several is empty, or two are the same name or file.
    """
    names = listed(value)
    first: dict[str, str] = {}
    for name in names if len(names) > 1 else ():
        path = os.path.expanduser(name)
        file = os.path.realpath(path) if os.path.exists(path) else name
        if not name:
            raise ConfigError(f"{key} '{value}' has an empty name beside a '+': expected names such as 'ViT-L/14 + RN50'.")
        if file in first:
            raise ConfigError(f"{key} '{value}' has '{name}' twice ('{first[file]}'): a teacher counts once. Remove one.")
        first[file] = name
    return names


def one_teacher(value: str, key: str) -> str:
    """Return the name of a command's only teacher.

    Raises:
        ConfigError: there are several.
    """
    if len(teacher_names(value, key)) > 1:
        raise ConfigError(f"{key} '{value}' names several teachers, this command takes one: train.py takes several.")
    return value


def prompt_sources(value: str, teachers: list[str]) -> list[str]:
    """Return the folders in TRAINER.KDPL.TEACHER_PROMPTS, one for each teacher; none if it is empty.

    Raises:
        ConfigError: there are more or fewer of them than teachers.
    """
    sources = listed(value) if value else []
    if sources and (len(sources) != len(teachers) or not all(sources)):
        raise ConfigError(
            f"TRAINER.KDPL.TEACHER_PROMPTS '{value}' has {len(sources)} folders for {len(teachers)} teachers, "
            f"{', '.join(teachers)}: expected one for each, in the same order, with ' + ' between them."
        )
    return sources


def read_sentences(path: str | os.PathLike) -> list[str]:
    """Return the sentences of a UTF-8 file, one a line with one `{}` for the name; blank lines are skipped.

    Raises:
        ConfigError: it cannot be read, has no sentence, or a line has not one `{}`.
    """
    where = f"TRAINER.KDPL.TEACHER_TEMPLATES '{path}'"
    try:
        lines = read_text(Path(path).expanduser()).split("\n")
    except (OSError, UnsafeTextError) as error:
        raise ConfigError(f"{where} cannot be read: {error} Expected UTF-8 text, one sentence a line.") from None
    for number, line in enumerate(lines, 1):
        if line.strip() and line.count("{}") != 1:
            raise ConfigError(
                f"{where}, line {number}: '{line.strip()[:80]}' has {line.count('{}')} '{{}}', expected one, for the class "
                "name, as in 'a photo of a {}.'."
            )
    if not any(map(str.strip, lines)):
        raise ConfigError(f"{where} has no sentence, expected one a line.")
    return [line.strip() for line in lines if line.strip()]


def check_templates(value: str) -> None:
    """Refuse a TRAINER.KDPL.TEACHER_TEMPLATES that is neither empty, "dataset", "imagenet" nor a file of sentences.

    Raises:
        ConfigError: the message names the value and what was expected.
    """
    if value in ("", DATASET, IMAGENET):
        return
    if not os.path.exists(os.path.expanduser(value)):
        hint = did_you_mean(value, (DATASET, IMAGENET))
        expected = f"'{DATASET}', '{IMAGENET}' nor a file of sentences"
        raise ConfigError(f"TRAINER.KDPL.TEACHER_TEMPLATES '{value}' is neither {expected}.{hint}")
    read_sentences(value)


def check_teachers(options: CfgNode) -> None:
    """Refuse settings of teachers, `cfg.TRAINER.KDPL`, that are invalid or contradict each other; no CLIP is looked for.

    Raises:
        ConfigError: the message names the key, its value and what to do.
    """
    check_templates(options.TEACHER_TEMPLATES)
    sources = prompt_sources(options.TEACHER_PROMPTS, teacher_names(options.TEACHER))
    if sources and options.TEACHER_TEMPLATES:
        raise ConfigError(
            f"TRAINER.KDPL.TEACHER_PROMPTS '{options.TEACHER_PROMPTS}' and TEACHER_TEMPLATES '{options.TEACHER_TEMPLATES}' "
            "contradict each other: learned prompts take the place of sentences. Leave one of them empty."
        )


def teacher_label(teacher: str, templates: str = "", prompts: str = "") -> str:
    """Return what results and reports call the teacher: its names, and its sentences or prompts if they are not the default."""
    return teacher + (f"{SENTENCES_MARK}{templates}" if templates else "") + (f"{PROMPTS_MARK}{prompts}" if prompts else "")


def names_its_texts(label: str) -> bool:
    """Whether a teacher's label names sentences or prompts of its own."""
    return SENTENCES_MARK in label or PROMPTS_MARK in label
