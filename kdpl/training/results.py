"""The results of a run as one JSON file, `results.json` in its output folder."""

import json
import os
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from kdpl.common.environment import git_state, versions
from kdpl.common.files import atomic_write
from kdpl.common.safe_text import UnsafeTextError, read_json
from kdpl.config.manifest import Manifest, OtherRunError, found_differences

SCHEMA = 1
FILE_NAME = "results.json"

_RUN = {  # the facts of a run, with the value of one that is not given
    "trainer": "", "backbone": "", "teacher": None, "class_agnostic": False, "seed": -1, "shots": -1, "config_name": "",
    "model_dir": None, "learned_parameters": 0, "train_seconds": 0.0, "epoch": 0, "prompts": "", "config": "", "manifest": None,
}  # fmt: skip
_IDENTITY = ("trainer", "backbone", "teacher", "class_agnostic", "seed", "shots")  # of prompts without a manifest
_TEST = ("dataset", "split", "classes", "source_domains", "target_domains")  # what a result is of
_RESULT = (*_TEST, "num_classes", "num_images", "accuracy", "error_rate", "macro_f1", "time")
_WHAT_TO_DO = "Choose another --output-dir, or start over with --fresh, which moves what is there aside."


class ResultsError(ValueError):
    """A results file is damaged, or this version cannot read it."""


def write_results(output_dir: str | os.PathLike, run: dict[str, Any], result: dict[str, Any]) -> Path:
    """Add the result of one test to `output_dir/results.json`, and return the file.

    An earlier result of the same data set, split, classes and domains is replaced.

    Args:
        output_dir: the run's output folder; it is made if missing.
        run: trainer, backbone, teacher (or None), class_agnostic, seed, shots, learned_parameters, train_seconds (s),
            epoch, prompts (their digest), config (the whole configuration as text or nested dict), manifest, and if known
            config_name (stem of the trainer's configuration file) and model_dir (the output folder of the tested training).
        result: dataset, split, classes ("all", "base" or "new"), source_domains, target_domains, num_classes,
            num_images, images (their digest), and accuracy, error_rate and macro_f1 in percent.

    Raises:
        ResultsError, OtherRunError: as `check_result`.
    """
    path, now = Path(output_dir, FILE_NAME), datetime.now(timezone.utc).isoformat(timespec="seconds")
    made = {"output_dir": os.path.abspath(output_dir), "versions": versions(), "git": git_state(), "time": now}
    header = {"schema": SCHEMA, **_RUN, **run, **made}
    if header["model_dir"]:
        header["model_dir"] = os.path.abspath(header["model_dir"])
    earlier = [entry for entry in _earlier_results(path, header) if _test_of(entry) != _test_of(result)]
    with atomic_write(path, "w") as file:
        json.dump({**header, "results": [*earlier, {**result, "time": now}]}, file, indent=2, default=str)
        file.write("\n")
    return path


def check_result(output_dir: str | os.PathLike, run: dict[str, Any], result: dict[str, Any]) -> None:
    """Refuse, before a test, a result that cannot be added to the file, or would replace one on other images.

    Args:
        run, result: as `write_results` takes them; of the result what it is of, and `images`, the digest of its images.

    Raises:
        ResultsError: the file is damaged.
        OtherRunError: it is from another run, or of other images.
    """
    path = Path(output_dir, FILE_NAME)
    for entry in _earlier_results(path, {**_RUN, **run}):
        then, now = entry.get("images", ""), result.get("images", "")
        if _test_of(entry) == _test_of(result) and then and then != now:
            raise OtherRunError(
                f"'{path}' has a result on {entry['dataset']} ({entry['split']}, {entry['classes']} classes) that was measured "
                f"on other images: {then} there, {now} now. Put the images back. {_WHAT_TO_DO}"
            )


def read_results(path: str | os.PathLike) -> dict[str, Any]:
    """Return the facts of a run, with the list "results" of its tests (see `write_results`).

    Args:
        path: the file, or the output folder that it lies in.

    Raises:
        FileNotFoundError: there is no such file.
        ResultsError: it is damaged, or of another schema.
    """
    path = Path(path, FILE_NAME) if os.path.isdir(path) else Path(path)
    try:
        content = read_json(path)
        if content["schema"] != SCHEMA or not isinstance(content["trainer"], str):
            raise ValueError(f"'schema' is {content['schema']!r}, 'trainer' {content['trainer']!r}")
        for entry in content["results"]:
            lacking = [key for key in _RESULT if key not in entry]
            if lacking or not 0 <= entry["accuracy"] <= 100:  # NaN is not either
                raise ValueError(f"a result lacks {', '.join(lacking) or 'an accuracy in percent'}")
        return {**_RUN, **content}
    except FileNotFoundError:
        raise FileNotFoundError(f"There is no '{path}': no test of this run has finished.") from None
    except (UnsafeTextError, OSError, ValueError, KeyError, TypeError) as error:
        raise ResultsError(f"'{path}' is damaged ({type(error).__name__}: {error}). Move it away and test again.") from None


def results_or_none(folder: str | os.PathLike) -> dict[str, Any] | None:
    """Return the results in a folder; None if there are none that can be read."""
    try:
        return read_results(Path(folder, FILE_NAME))
    except (FileNotFoundError, ResultsError):
        return None


def _earlier_results(path: Path, header: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the results that the file holds already, none if there is no file.

    Raises:
        ResultsError: it is damaged.
        OtherRunError: it is from another run.
    """
    try:
        earlier = read_results(path)
    except FileNotFoundError:
        return []
    then, now = (Manifest.from_dict(run["manifest"]) for run in (earlier, header))
    if then and now:
        changes = [*found_differences(then, now).values()]
    else:
        changes = [f"{key} {earlier[key]!r}, now {header[key]!r}" for key in _IDENTITY if earlier[key] != header[key]]
        changes += ["another manifest"] if then is not now else []
    if changes:
        raise OtherRunError(f"'{path}' is from another run ({'; '.join(changes)}). {_WHAT_TO_DO}")
    return earlier["results"]


def _test_of(entry: Mapping[str, Any]) -> str:
    """Return what a result is of, data set, split, classes and domains, so that it can be compared."""
    return json.dumps([entry[key] for key in _TEST])
