"""Teachers that are no CLIP: a file of probabilities by image, or any object that gives logits over the class names.

An API's answers, an ensemble of other models, a supervised classifier: what is needed of them is one distribution an image.
"""

import csv
import hashlib
import json
import os
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

FORMATS = (".csv", ".npz", ".safetensors")
PREFIX = "probabilities:"  # of TRAINER.KDPL.TEACHER, before a file
SUM = 1e-3  # by which the probabilities of an image may add up to something else than 1
LEAST = 1e-30  # a probability below is taken for this, whose logarithm is finite


class GivenTeacher:
    """Any object as a teacher of `Distillation` that has `names`, class names, and `logits(batch)`, `(B, C)` over them.

    Called with images `(B, 3, H, W)`, it is given them, normalised for the student. Called with `teacher_features=keys`, it is
    given the keys.
    """

    members = ()

    def __init__(self, teacher: Any):
        self.teacher, self.names = teacher, list(teacher.names)

    def image_features(self, images: Tensor) -> Tensor:
        return images

    @torch.no_grad()
    def logits(self, batch: Any, student_scale: Tensor) -> Tensor:
        """Return its logits `(B, C)` in fp32, on the student's device; the scale is its own.

        Raises:
            ValueError: it returned another shape.
        """
        logits = self.teacher.logits(batch).to(student_scale.device, torch.float32)
        if logits.shape != (len(batch), len(self.names)):
            raise ValueError(
                f"The teacher {type(self.teacher).__name__} returned logits {tuple(logits.shape)} for {len(batch)} images and "
                f"{len(self.names)} names, expected {(len(batch), len(self.names))}."
            )
        return logits


class Probabilities:
    """A table of probabilities by image.

    Args:
        names: class names `(C)`, in the order of the columns.
        keys: of the images `(N)`, such as their paths below the folder of the data set.
        values: probabilities `(N, C)`.
        where: it is from, for messages.

    Raises:
        ValueError: a key is there twice, shapes disagree, or a row is no distribution.
    """

    def __init__(self, names: Sequence[str], keys: Sequence[str], values: Tensor, where: str = "The table of probabilities"):
        self.names, self.where = list(names), where
        self.rows = {key: row for row, key in enumerate(keys)}
        if len(self.rows) < len(keys):
            twice = next(key for row, key in enumerate(keys) if self.rows[key] != row)
            raise ValueError(f"{where} has the image '{twice}' twice: remove one of its rows.")
        values = values.double()
        if values.shape != (len(keys), len(self.names)):
            raise ValueError(f"{where} has values {tuple(values.shape)} for {len(keys)} images and {len(self.names)} names.")
        sums = values.sum(1)
        wrong = ~((sums - 1).abs() <= SUM) | (values < 0).any(1)  # NaN is wrong, too
        if wrong.any():
            row = int(wrong.nonzero()[0])
            raise ValueError(
                f"{where}: the {len(self.names)} probabilities of '{keys[row]}' add up to {float(sums[row]):.4g} (least "
                f"{float(values[row].min()):.4g}), expected none below 0 and a sum of 1. Logits become probabilities by a "
                "softmax."
            )
        self._log = values.clamp_min(LEAST).log().float()  # (N, C)

    @property
    def digest(self) -> str:
        """A digest of names, keys and values."""
        text = json.dumps([self.names, list(self.rows)]).encode()
        return hashlib.sha256(text + self._log.numpy().tobytes()).hexdigest()

    def check(self, names: Sequence[str], keys: Sequence[str]) -> None:
        """Refuse other names, or another order of them, and images that have no row.

        Raises:
            ValueError: the message names the first that differs.
        """
        for column, (mine, theirs) in enumerate(zip_longest(self.names, names, fillvalue="none")):
            if mine != theirs:
                raise ValueError(
                    f"{self.where} has {len(self.names)} class names, and column {column} is '{mine}': expected '{theirs}', "
                    f"as the {len(names)} class names of the data set are written and ordered."
                )
        if absent := [key for key in keys if key not in self.rows]:
            raise ValueError(
                f"{self.where} has no row for {len(absent):,} of {len(keys):,} training images, such as '{absent[0]}' "
                f"(it has rows such as '{next(iter(self.rows), '')}'): expected one for each, by its path below the data set's "
                "folder."
            )

    def logits(self, keys: Sequence[str]) -> Tensor:
        """Return log-probabilities `(B, C)` of images by their keys.

        Raises:
            ValueError: one has no row.
        """
        self.check(self.names, keys)
        return self._log[[self.rows[key] for key in keys]]


def read_probabilities(path: str | os.PathLike) -> Probabilities:
    """Return the table in a file.

    - `.csv`: a header `path,NAME,NAME,...`, and a row for each image.
    - `.npz`: arrays `paths (N)`, `names (C)` and `probabilities (N, C)`.
    - `.safetensors`: a tensor `probabilities (N, C)`, and in the metadata `paths` and `names` as JSON lists.

    Raises:
        ValueError, OSError: the message names the file and what is wrong with it.
    """
    path = Path(path).expanduser()
    where = f"'{path}'"
    if not path.is_file() or path.suffix not in FORMATS:
        raise ValueError(f"There is no table of probabilities {where}: expected a file {', '.join(FORMATS)}.")
    try:
        if path.suffix == ".csv":
            with open(path, newline="", encoding="utf-8-sig") as file:
                head, *rows = (row for row in csv.reader(file) if row)
            if not head or head[0] != "path" or any(len(row) != len(head) for row in rows):
                raise ValueError("expected a header 'path,NAME,NAME,...' and as many cells in each row")
            names, keys, cells = head[1:], [row[0] for row in rows], [[float(cell) for cell in row[1:]] for row in rows]
            values = torch.tensor(cells, dtype=torch.float64).reshape(len(keys), len(names))
        elif path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                names, keys = (json.loads((file.metadata() or {})[name]) for name in ("names", "paths"))
                values = file.get_tensor("probabilities")
        else:
            with np.load(path, allow_pickle=False) as file:
                names, keys = ([str(text) for text in file[name]] for name in ("names", "paths"))
                values = torch.from_numpy(file["probabilities"].astype(np.float64))
        return Probabilities(names, keys, values, where)
    except (KeyError, TypeError, EOFError, BadZipFile, RuntimeError, SafetensorError, ValueError) as error:
        text = str(error)
        raise ValueError(text if text.startswith(where) else f"{where} cannot be read as a table ({text}).") from error
