"""What of KDPL works in a fork: its configuration, KDPL_CoOp, and its own trainers without labels, printed as it is found."""

import re
import shlex
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kdpl.common.environment import dassl_in_use
from kdpl.common.safe_text import on_one_line
from kdpl.config.command_line import CONFIGS
from kdpl.forks.start import run_python, trial

LAYERS = "12"  # of CLIP; a trial begins with fewer
_REMEDIES = (  # what an error says, and the setting that it asks for
    ("TEACHER_LOGIT_SCALE to 'own'", "TRAINER.KDPL.TEACHER_LOGIT_SCALE", "own"),
    ("OPTIM.STAGED_LR is True", "OPTIM.STAGED_LR", "False"),
    ("has no 'normalize'", "INPUT.TRANSFORMS", "['random_resized_crop','random_flip','normalize']"),
)
_ALLOW = re.compile(r"TRAINER\.KDPL\.ALLOW (\w+)")


@dataclass(frozen=True)
class Finding:
    """One thing that was tried.

    Attributes:
        works: whether it does; None: a note, such as of a trainer that stops with its labels too.
        line: what was tried and what came of it.
        found: the result of the trial.
        options: the settings, KEY VALUE ..., that it needed.
    """

    works: bool | None
    line: str
    found: dict[str, Any] = field(default_factory=dict)
    options: Sequence[str] = ()

    def __str__(self) -> str:
        return f"{({True: 'ok', False: 'FAIL'}).get(self.works, 'note'):4} {self.line}"


def try_fork(
    fork: Path, trainer: str = "", settings: Sequence[str] = (), prepare: str = "", layers: str = "", root: str = ""
) -> Iterator[Finding]:
    """Run what the documentation promises in a fork, and yield what came of each run when it is over.

    Args:
        fork: its folder.
        trainer: which of its trainers to try without labels; empty: all.
        settings: KEY VALUE ... of every run, for the fork's own command line.
        prepare: a Python file that runs before the fork's main().
        layers: of the small CLIP; empty: few, or as many as CLIP has if few are not enough.
        root: a folder with the files of the fork's own data set; empty: drawings stand in for it.
    """
    found = trial(fork)
    if "mended" not in found:
        yield _failed("import of train.py and extend_cfg(cfg)", found)
        return
    mended = f"; of another type than KDPL's, mended: {', '.join(found['mended'])}" if found["mended"] else ""
    versions = f"kdpl {found['kdpl']}, PyTorch {found['torch']}, {dassl_in_use()}"
    versions += "" if found["dassl"] == "bundled" else f" (version {found['dassl']})"
    yield Finding(True, f"configuration: {versions}{mended}")
    extra = [*(["--prepare", prepare] if prepare else []), *(["--root", root] if root else [])]
    with tempfile.TemporaryDirectory() as output:
        yield _own_trainer(fork, output, settings)
        yield from _offers(found["trainers"])
        offered = {name: offer for name, offer in found["trainers"].items() if trainer in ("", name, offer)}
        if trainer and not offered:
            yield Finding(False, f"--trainer {trainer}: expected one of {', '.join(found['trainers'].values())}")
        for name, offer in offered.items():
            yield from tried(fork, name, offer, settings, [*extra, "--clips", output], layers)


def _offers(offered: dict[str, str]) -> Iterator[Finding]:
    """Say under which names a fork's trainers are offered."""
    listed = ", ".join(offered.values()) or "none of this fork, whose trainers cannot be distilled"
    yield Finding(bool(offered), f"--trainer takes, without labels: {listed}")
    for name, offer in offered.items():
        if not offer.startswith("KDPL_"):
            yield Finding(None, f"KDPL_{name} is KDPL's own {name}; that of this fork, perhaps another method, is {offer}")


def tried(
    fork: Path, name: str, offer: str, settings: Sequence[str] = (), extra: Sequence[str] = (), layers: str = ""
) -> Iterator[Finding]:
    """Try one trainer, again with what a refusal asks for or with all of CLIP's layers, and yield what came of it.

    Args:
        extra: further options of `kdpl.forks.trial`.
        fork, name, offer, settings, layers: as of `try_fork`.
    """
    added: dict[str, str] = {}
    while True:
        options = [*settings, *(x for pair in added.items() for x in pair)]
        args = ["--trainer", name, *extra, *(["--layers", layers] if layers else []), *(["--set", *options] if options else [])]
        found, what = trial(fork, *args), " ".join([offer, *([f"with {' '.join(options)}"] if options else [])])
        if more := _remedy(found, added):
            added |= more
            again = " ".join(" ".join(pair) for pair in more.items())
            yield Finding(None, f"{_failed(what, found).line}\n     tried again with {again}")
        elif not layers and _may_lack_layers(found):
            layers = LAYERS
        else:
            break
    if "moved" not in found:
        labelled = trial(fork, *args[:2], "--labels", *args[2:])
        failed = _failed(what, {**found, "labelled": labelled})
        yield replace(failed, found=found, options=options, works=False if labelled.get("ran") else None)
        return
    moved = f"{found['moved']} of {found['learned']} learned parameters moved"
    moved += f"; not {', '.join(found['still'])}" if found["still"] else ""
    line = f"{what}: {found['steps']} steps without labels, {moved}"
    if "loss_differs" in found:
        line += f"; loss and gradient are the formula's to {max(found['loss_differs'], found['gradient_differs']):.0e}"
    yield Finding(found["moved"] > 0, f"{line}\n     {command(offer, found, options)}", found, options)


def command(offer: str, found: dict[str, Any], options: Sequence[str]) -> str:
    """Return the command that trains a trainer on the data set whose file the trial took."""
    files = ["--config-file", found["config_file"], "--dataset-config-file", found["data_file"]]
    words = ["python", "train.py", "--trainer", offer, "--root", "DATA", *files, "--output-dir", "OUTPUT", *options]
    return shlex.join(words)


def _remedy(found: dict[str, Any], added: dict[str, str]) -> dict[str, str]:
    """Return the setting that a refusal or an error asks for, if it is not set yet."""
    said, allow = found.get("refused") or found.get("error", ""), "TRAINER.KDPL.ALLOW"
    given = added.get(allow, "").split(",")
    if (word := _ALLOW.search(said)) and word[1] not in given:
        return {allow: ",".join([*filter(None, given), word[1]])}
    return next(({key: value} for sign, key, value in _REMEDIES if sign in said and key not in added), {})


def _may_lack_layers(found: dict[str, Any]) -> bool:
    """Whether a trial that went wrong may go right with all of CLIP's layers: some trainers act on the last of them."""
    known = found.get("way_out") or "refused" in found or not found.get("where", "nothing moved")
    return bool(found.get("still")) or ("error" in found and not known)


def _own_trainer(fork: Path, output: str, settings: Sequence[str]) -> Finding:
    """Run the fork's own `train.py` with KDPL_CoOp and KDPL's configuration files."""
    args = ["train.py", "--trainer", "KDPL_CoOp", "--seed", "1", "--output-dir", output]
    args += ["--config-file", f"{CONFIGS}/trainers/KDPL_CoOp/emoji.yaml"]
    args += ["--dataset-config-file", f"{CONFIGS}/datasets/emoji_meals.yaml", "DATASET.NUM_SHOTS", "1"]
    args += ["DATASET.SUBSAMPLE_CLASSES", "base", "OPTIM.MAX_EPOCH", "1", "TEST.NO_TEST", "True", *settings]
    found, what = run_python(fork, *args), "python train.py --trainer KDPL_CoOp"
    if Path(output, "prompts.safetensors").is_file():
        return Finding(True, f"{what}: trained, prompts written")
    failed = _failed(what, {"error": "no prompts were written", **found})
    if not found.get("own"):
        return failed
    note = "a limit of this fork's code, for its own trainers: those of KDPL train by python -m kdpl.train --trainer KDPL_CoOp"
    return replace(failed, works=None, line=f"{failed.line}\n     {note}")


def _failed(what: str, found: dict[str, Any]) -> Finding:
    why = f"refused. {found['refused']}" if "refused" in found else found.get("error", "no result")
    further = [("in", found.get("where")), ("what to do:", found.get("way_out"))]
    lines = [f"{what}: {why}", *(f"{word} {text}" for word, text in further if text)]
    if "labelled" in found:
        labelled = found["labelled"]
        same = "it runs" if labelled.get("ran") else f"it stops too: {labelled.get('error', 'no result')}"
        lines.append(f"with its labels {same}")
    return Finding(False, "\n     ".join(map(on_one_line, lines)), found)
