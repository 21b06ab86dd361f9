"""A cache of text features by class name: a teacher's over a vocabulary, and a student's prompt ensembles.

On disk there is one file (kdpl/common/features.py) below `text_features` in the cache folder for each text tower (architecture
and weights) and list of templates.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from kdpl.clip.model import Clip
from kdpl.clip.preprocessing import index_on
from kdpl.common.files import cache_dir, key_of
from kdpl.common.tensor_files import FeatureFile
from kdpl.text.prompts import SENTENCES_AT_ONCE, ensemble_features

NAMES_AT_ONCE = 1000  # features are copied from the device for so many names, so that a step does not wait for it


class TextFeatures:
    """The normalised mean over templates of a frozen CLIP's text features, by class name.

    Features are computed at first use, and written now and then and at `flush`. They are stored in fp32, so a run that reads
    them gets bit-identical values; half precision would move the published losses by more than 1e-4.

    Args:
        clip: the frozen CLIP; the features are on its device, in fp32.
        templates: sentences with `{}` for the name.
        among: the list that all names are from. If given, the names of one call are either all read or all computed, so that
            the features are bit-identical whatever was cached before.
        normalize: normalise each template's feature before the mean, see `ensemble_features`.
    """

    def __init__(self, clip: Clip, templates: Sequence[str], among: Sequence[str] = (), normalize: bool = False):
        self.clip, self.templates, self.among, self.normalize = clip, list(templates), list(among), normalize
        self._row_of: dict[str, int] = {}  # of the table, by name
        self._table: Tensor | None = None  # (capacity, d) fp32; grown by doubling
        self._file: FeatureFile | None = None
        self._not_in_file: list[str] = []
        self._last: tuple[list[str], Tensor] | None = None  # the names of the last call and their rows, on the device

    def _open(self) -> None:
        if self._table is None:
            meaning = {"weights": self.clip.digest("text"), "templates": self.templates, "among": self.among}
            meaning |= {"normalize": True} if self.normalize else {}
            self._file = FeatureFile(cache_dir() / "text_features", meaning, self.clip.embed_dim)
            self._table = torch.empty(0, self.clip.embed_dim, device=self.clip.device)

    def missing(self, names: Sequence[str]) -> int:
        """Return how many of these names are neither in memory nor on disk."""
        self._open()
        return sum(n not in self._row_of and key_of(n) not in self._file for n in names)

    def __call__(self, names: Sequence[str]) -> Tensor:
        """Return the features `(C, d)` of these names, in fp32."""
        if self._last is not None and self._last[0] == names:  # in every step of a training: nothing waits for the device
            return self._table[self._last[1]]
        self._open()
        new = [n for n in dict.fromkeys(names) if n not in self._row_of]
        found = [n for n in new if key_of(n) in self._file]
        if found and not (self.among and len(found) < len(new)):
            self._add(found, self._file.get([key_of(n) for n in found]).to(self._table.device))
            new = [n for n in new if n not in self._row_of]
        if new:
            with torch.autocast(self.clip.device.type, enabled=False):  # independent of the caller's autocast
                self._add(new, ensemble_features(self.clip, new, self.templates, self.normalize))
            self._not_in_file += new
            if len(self._not_in_file) >= NAMES_AT_ONCE:
                self._add_to_file()
        rows = index_on(self._table.device, [self._row_of[n] for n in names])
        self._last = list(names), rows
        return self._table[rows]

    def flush(self) -> None:
        """Write the features that are not on disk yet; if they cannot be written, that is printed."""
        if self._file is not None:
            self._add_to_file()
            self._file.save()

    def _add_to_file(self) -> None:
        names, self._not_in_file = self._not_in_file, []
        if names:
            self._file.add([key_of(n) for n in names], self._table[[self._row_of[n] for n in names]])

    def _add(self, names: Sequence[str], features: Tensor) -> None:
        first, last = len(self._row_of), len(self._row_of) + len(names)
        if last > len(self._table):
            grown = self._table.new_empty(max(last, 2 * len(self._table)), self._table.shape[1])
            grown[:first] = self._table[:first]
            self._table = grown
        self._table[first:last] = features
        self._row_of.update(zip(names, range(first, last), strict=True))


def cached_text_features(clip: Clip, names: Sequence[str], templates: str | Sequence[str]) -> Tensor:
    """Return the `template_features` `(V, d)` of a vocabulary in one sentence or several, read from the cache or computed."""
    templates = [templates] if isinstance(templates, str) else templates
    features = TextFeatures(clip, templates, names, normalize=len(templates) > 1)
    first = features.missing(names)
    if first:
        print(f"Computing the text features of {first:,} names, once for this teacher and template")
    starts = range(0, len(names), SENTENCES_AT_ONCE)
    for start in tqdm(starts, desc="text features", disable=None if first else True, leave=False):
        features(names[start : start + SENTENCES_AT_ONCE])
    features.flush()
    return features(names)
