"""The results of a run as one JSON file, `results.json` in its output folder."""

import json
import os
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from itertools import count
from pathlib import Path
from typing import Any

from kdpl.common.environment import git_state, versions
from kdpl.common.files import atomic_write
from kdpl.common.safe_text import UnsafeTextError, print, read_json
from kdpl.config.manifest import Manifest, OtherRunError, compare_settings, is_continued

SCHEMA = 1
FILE_NAME = "results.json"

_RUN = {  # with what stands for a fact that is not given, as in files of an earlier version
    "trainer": "", "backbone": "", "teacher": None, "class_agnostic": False, "seed": -1, "shots": -1, "config_name": "",
    "model_dir": None, "learned_parameters": 0, "train_seconds": 0.0, "epoch": 0, "prompts": "", "config": "", "manifest": None,
}  # fmt: skip
_IDENTITY = ("trainer", "backbone", "teacher", "class_agnostic", "seed", "shots")
_ENTRY = ("dataset", "split", "classes", "source_domains", "target_domains")
_RESULT = (*_ENTRY, "num_classes", "num_images", "accuracy", "error_rate", "macro_f1")


class ResultsError(ValueError):
    """A results file is damaged, or this version cannot read it."""


class NewerSchemaError(ResultsError):
    """A results file has a schema that only a newer version of kdpl reads."""


def write_results(output_dir: str | os.PathLike, run: dict[str, Any], result: dict[str, Any]) -> Path:
    """Add the result of one test to `output_dir/results.json`.

    An earlier result of the same data set, split, classes and domains is replaced. A damaged file, or one from another run
    (trainer, backbone, teacher, seed or shots differ), is moved aside with a warning: the new result is never lost over it.

    Args:
        output_dir: the run's output folder; it is made if missing.
        run: trainer, backbone, teacher (or None), class_agnostic, seed, shots, learned_parameters, train_seconds (s),
            epoch, prompts (their digest), config (the whole configuration as text or nested dict), and if known config_name
            (stem of the trainer's configuration file) and model_dir (the output folder of the training run that is tested).
        result: dataset, split, classes ("all", "base" or "new"), source_domains, target_domains, num_classes,
            num_images, images (their digest), and accuracy, error_rate and macro_f1 in percent.

    Returns:
        The path of the file.
    """
    path = Path(output_dir, FILE_NAME)
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    made = {"output_dir": str(output_dir), "versions": versions(), "git": git_state(), "time": now}
    header = {"schema": SCHEMA, **_RUN, **run, **made}
    earlier = [entry for entry in _earlier_results(path, header) if _test_of(entry) != _test_of(result)]
    with atomic_write(path, "w") as file:
        json.dump({**header, "results": [*earlier, {**result, "time": now}]}, file, indent=2, default=str)
        file.write("\n")
    return path


def read_results(path: str | os.PathLike) -> dict[str, Any]:
    """Read a results file.

    Args:
        path: the file, or the output folder that it lies in.

    Returns:
        The run's facts, with the list "results" of its tests (see `write_results`).

    Raises:
        FileNotFoundError: there is no such file.
        ResultsError: it is damaged, or of a newer schema (`NewerSchemaError`).
    """
    path = Path(path, FILE_NAME) if os.path.isdir(path) else Path(path)
    try:
        content = read_json(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"There is no '{path}': no test of this run has finished.") from None
    except (UnsafeTextError, IsADirectoryError) as error:
        raise ResultsError(f"'{path}' is damaged: it is not JSON ({error}). Move it away and test again.") from None
    schema = content.get("schema") if isinstance(content, dict) else None
    if isinstance(schema, int) and schema > SCHEMA:
        raise NewerSchemaError(f"'{path}' is of schema {schema}, this version reads up to {SCHEMA}: use a newer kdpl.")
    problem = f"'schema' is {schema!r}, expected {SCHEMA}" if schema != SCHEMA else _problem(content)
    if problem:
        raise ResultsError(f"'{path}' is damaged: {problem}. Move it away and test again.")
    return {**_RUN, **content}


def same_dataset(a: str, b: str) -> bool:
    """Return whether two names mean the same data set: DATASET.NAME ("EmojiSky") or the stem of its config ("emoji_sky")."""
    return _plain(a) == _plain(b)


def missing_datasets(
    folder: str | os.PathLike,
    datasets: Sequence[str] = (),
    classes: str = "all",
    split: str = "test",
    model_dir: str | os.PathLike | None = None,
    settings: Mapping[str, Any] | None = None,
    domains: Sequence[str] | None = None,
) -> list[str]:
    """Return which of the data sets have no result in a run's folder.

    Args:
        datasets: names (see `same_dataset`); none: any data set will do, and the missing one is called "any".
        classes, split: which result.
        model_dir: the folder of the training run that was tested; results of other prompts than it has now do not count.
        settings: the manifest's configuration (`kdpl.config.manifest.config_of`) that the results must have been made with.
        domains: DATASET.TARGET_DOMAINS of the result; None: whichever.

    Raises:
        NewerSchemaError: a results file is of a newer schema. A damaged one counts as none.
    """
    run = _run_or_none(Path(folder))
    recorded = ((run or {}).get("manifest") or {}).get("config") or {}
    if settings is not None and compare_settings(recorded, settings):
        run = None
    entries = [e for e in (run or {}).get("results", ()) if (e["classes"], e["split"]) == (classes, split)]
    if domains is not None:
        entries = [entry for entry in entries if list(entry["target_domains"]) == list(domains)]
    if model_dir is not None and entries and not _same_prompts(run, _run_or_none(Path(model_dir))):
        entries = []
    if not datasets:
        return [] if entries else ["any"]
    return [name for name in datasets if not any(same_dataset(name, entry["dataset"]) for entry in entries)]


def _same_prompts(tested: dict[str, Any], trained: dict[str, Any] | None) -> bool:
    """Whether a test is of the prompts that a training has now: by their content, as far as both have recorded it.

    Clocks of two machines differ, so they decide only for programs that record nothing else.
    """
    if trained is None:
        return True
    if tested.get("prompts") and trained.get("prompts"):
        return tested["prompts"] == trained["prompts"]
    then, now = _manifests(tested, trained)
    if then and now:
        return then.digest == now.digest and tested["epoch"] == trained["epoch"]
    last, first = (max((entry["time"] for entry in run["results"]), default="") for run in (trained, tested))
    return first >= last


def recorded_manifest(folder: str | os.PathLike) -> Any:
    """Return the manifest in a folder's results file; None without one."""
    return (_run_or_none(Path(folder)) or {}).get("manifest")


def _earlier_results(path: Path, header: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the results that the file holds already; a file that cannot be added to is moved aside."""
    try:
        earlier = read_results(path)
    except FileNotFoundError:
        return []
    except ResultsError as error:
        _move_aside(path, "damaged", str(error))
        return []
    if changes := _other_run(earlier, header):
        _move_aside(path, "other", f"'{path}' is from another run ({changes}).")
        return []
    if _is_longer(earlier, header):
        _move_aside(path, f"epoch-{earlier['epoch']}", f"'{path}' has the results of this run after {earlier['epoch']} epochs.")
        return []
    return earlier["results"]


def _other_run(earlier: dict[str, Any], header: dict[str, Any]) -> str:
    """Return in what the run that a file is from differs from another one; empty if it is the same, or was continued."""
    then, now = _manifests(earlier, header)
    if then and now:
        compared = [key for key in _IDENTITY if key not in ("backbone", "teacher")]  # which a manifest knows by what they are
        same = is_continued(then, now)
    else:
        compared, same = _IDENTITY, then is now
    pairs = {key: (earlier[key], header[key]) for key in compared}
    if not same:
        pairs["manifest"] = tuple((run["manifest"] or {}).get("digest") for run in (earlier, header))
    return ", ".join(f"{key} {a!r}, now {b!r}" for key, (a, b) in pairs.items() if a != b)


def _is_longer(earlier: dict[str, Any], header: dict[str, Any]) -> bool:
    """Whether the same run was continued with other settings, more epochs, since."""
    then, now = _manifests(earlier, header)
    return bool(then and now and len(now.changes) > len(then.changes))


def _manifests(*runs: dict[str, Any]) -> list[Manifest | None]:
    return [Manifest.from_dict(run["manifest"]) for run in runs]


def check_images(output_dir: str | os.PathLike, run: dict[str, Any], result: dict[str, Any]) -> None:
    """Refuse a test whose result would replace one on other images.

    Args:
        run, result: as `write_results` takes them; of the result what it is of, and `images`, the digest of its images.

    Raises:
        OtherRunError: it names the result and both digests.
    """
    path, header = Path(output_dir, FILE_NAME), {**_RUN, **run}
    earlier = _run_or_none(path.parent)
    if earlier is None or _other_run(earlier, header) or _is_longer(earlier, header):
        return
    for entry in earlier["results"]:
        if _test_of(entry) != _test_of(result):
            continue
        then, now = entry.get("images", ""), result["images"]
        what = f"'{path}' has a result on {entry['dataset']} ({entry['split']}, {entry['classes']} classes)"
        if then and then != now:
            raise OtherRunError(
                f"{what} that was measured on other images: {then} there, {now} now. Put the images back, choose another "
                "--output-dir, or start over with --fresh, which moves what is there aside."
            )
        if not then:
            print(f"Note: {what} of an earlier version, which did not record its images: it is replaced")


def _move_aside(path: Path, reason: str, why: str) -> None:
    names = (path.with_name(f"{path.name}.{reason}-{n}") for n in count(1))
    aside = next(name for name in names if not name.exists())
    os.replace(path, aside)
    print(f"{'Note' if reason.startswith('epoch') else 'Warning'}: {why} It is saved as '{aside}', and a new file begins.")


def _problem(content: dict[str, Any]) -> str | None:
    """Return what is wrong with the content of a results file, or None."""
    if not isinstance(content.get("trainer"), str):
        return f"'trainer' is {content.get('trainer')!r}, expected a name"
    results = content.get("results")
    if not isinstance(results, list):
        return f"'results' is {results!r}, expected a list"
    for i, entry in enumerate(results):
        lacking = [key for key in (*_RESULT, "time") if key not in entry] if isinstance(entry, dict) else ["everything"]
        if lacking:
            return f"result {i} lacks {', '.join(lacking)}"
        if not isinstance(entry["accuracy"], int | float):
            return f"the accuracy of result {i} is {entry['accuracy']!r}, expected a number in percent"
    return None


def _run_or_none(folder: Path) -> dict[str, Any] | None:
    try:
        return read_results(folder / FILE_NAME)
    except NewerSchemaError:
        raise
    except (FileNotFoundError, ResultsError):
        return None


def _test_of(entry: Mapping[str, Any]) -> list[Any]:
    """Return what a result is of: data set, split, classes and domains."""
    return [list(value) if isinstance(value := entry[key], tuple) else value for key in _ENTRY]


def _plain(name: str) -> str:
    plain = name.replace("_", "").replace("-", "").lower()
    return "describabletextures" if plain == "dtd" else plain
