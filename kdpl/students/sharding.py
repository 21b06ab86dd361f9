"""Class names that the ranks of a job share: each encodes some of them, and all get the features of all."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from kdpl.common import distributed

if TYPE_CHECKING:
    from kdpl.students.base import Student


class Shard(NamedTuple):
    """One rank's share of the class names."""

    prepared: Any  # the student's constants of these names
    counts: list[int]  # number of names of each rank


def prepare_names(student: "Student", names: Sequence[str], shard_classes: bool) -> Any:
    """Return the student's constants of class names; with `shard_classes`, in a job of several ranks, of this rank's share.

    Raises:
        ValueError: there are fewer names than ranks that share them.
    """
    ranks = distributed.world()
    if not shard_classes or ranks == 1:
        return student.prepare(names)
    if len(names) < ranks:
        raise ValueError(
            f"TRAINER.KDPL.SHARD_CLASSES True cannot split {len(names)} class names among {ranks} processes: set it to False."
        )
    return Shard(student.prepare(names[distributed.share(len(names))]), distributed.share_lengths(len(names)))


def encode_names(student: "Student", prepared: Any, image_features: Tensor | None = None) -> Tensor:
    """Return the student's `text_features` of all names, gathered from all ranks if each has a share of them."""
    if isinstance(prepared, Shard):
        return distributed.gather_with_gradient(student.text_features(prepared.prepared), prepared.counts)
    return student.text_features(prepared, image_features)
