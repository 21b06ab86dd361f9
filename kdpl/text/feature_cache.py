"""A cache of text features by class name: a teacher's over a vocabulary, and a student's prompt ensembles.

On disk there is one `FeatureFile` below `text_features` in the cache folder for each text tower (architecture and weights) and
list of templates. Features are stored in fp32, so that a run that reads them gets bit-identical values; half precision would
move the published losses by more than 1e-4.
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


def _file(clip: Clip, templates: Sequence[str], among: Sequence[str] = (), normalize: bool = False) -> FeatureFile:
    meaning = {"weights": clip.digest("text"), "templates": list(templates), "among": list(among)}
    meaning |= {"normalize": True} if normalize else {}
    return FeatureFile(cache_dir() / "text_features", meaning, clip.embed_dim)


class TextFeatures:
    """The normalised mean over templates of a frozen CLIP's text features, not normalised before, by class name.

    Features are computed at first use, and written at `flush`.

    Args:
        clip: the frozen CLIP; the features are on its device, in fp32.
        templates: sentences with `{}` for the name.
    """

    def __init__(self, clip: Clip, templates: Sequence[str]):
        self.clip, self.templates = clip, list(templates)
        self._row_of: dict[str, int] = {}  # of the table, by name
        self._table = torch.empty(0)  # (N, d) fp32, on the device
        self._file: FeatureFile | None = None
        self._last: tuple[list[str], Tensor] | None = None  # the names of the last call and their rows

    def __call__(self, names: Sequence[str]) -> Tensor:
        """Return the features `(C, d)` of these names, in fp32."""
        if self._last is not None and self._last[0] == names:  # in every step of a training: nothing waits for the device
            return self._table[self._last[1]]
        if self._file is None:
            self._file = _file(self.clip, self.templates)
            self._table = torch.empty(0, self.clip.embed_dim, device=self.clip.device)
        if found := [n for n in dict.fromkeys(names) if n not in self._row_of and key_of(n) in self._file]:
            self._add(found, self._file.get([key_of(n) for n in found]).to(self._table.device))
        if new := [n for n in dict.fromkeys(names) if n not in self._row_of]:
            with torch.autocast(self.clip.device.type, enabled=False):  # independent of the caller's autocast
                self._add(new, ensemble_features(self.clip, new, self.templates, normalize=False))
        self._last = list(names), index_on(self._table.device, [self._row_of[n] for n in names])
        return self._table[self._last[1]]

    def _add(self, names: Sequence[str], features: Tensor) -> None:
        self._row_of.update((name, row) for row, name in enumerate(names, len(self._table)))
        self._table = torch.cat([self._table, features])

    def flush(self) -> None:
        """Write the features that are not on disk yet; if they cannot be written, that is printed."""
        if self._file is None:
            return
        if new := [name for name in self._row_of if key_of(name) not in self._file]:
            self._file.add([key_of(name) for name in new], self._table[[self._row_of[name] for name in new]])
        self._file.save()


def cached_text_features(clip: Clip, names: Sequence[str], templates: str | Sequence[str]) -> Tensor:
    """Return the `template_features` `(V, d)` of a vocabulary in one sentence or several, read from the cache or computed.

    The features of names that are encoded together are either all read or all computed, so that they are bit-identical
    whatever was cached before.
    """
    templates = [templates] if isinstance(templates, str) else templates
    normalize, keys = len(templates) > 1, [key_of(name) for name in names]
    file = _file(clip, templates, names, normalize)
    new = sum(key not in file for key in keys)
    if new:
        print(f"Computing the text features of {new:,} names, once for this teacher and template")
    found = []
    starts = range(0, len(names), SENTENCES_AT_ONCE)
    for start in tqdm(starts, desc="text features", disable=None if new else True, leave=False):
        some, their_keys = names[start : start + SENTENCES_AT_ONCE], keys[start : start + SENTENCES_AT_ONCE]
        if all(key in file for key in their_keys):
            features = file.get(their_keys)
        else:
            with torch.autocast(clip.device.type, enabled=False):
                features = ensemble_features(clip, some, templates, normalize)
            file.add(their_keys, features)
        found.append(features.to(clip.device))
    file.save()
    return torch.cat(found)
