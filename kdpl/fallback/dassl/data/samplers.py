"""The order in which a loader visits the images of a data set."""

from collections.abc import Sequence

from torch.utils.data import RandomSampler, Sampler, SequentialSampler

from dassl.data.datasets import Datum
from kdpl.config.keys import SAMPLERS, check_choice


def build_sampler(sampler_type: str, cfg=None, data_source: Sequence[Datum] = ()) -> Sampler[int]:
    """Return the sampler of that name over `data_source`.

    Raises:
        ValueError: there is no sampler of that name, or only Dassl has it: those by domain and by class.
    """
    check_choice("SAMPLER", sampler_type, SAMPLERS)
    bundled = {"RandomSampler": RandomSampler, "SequentialSampler": SequentialSampler}
    if sampler_type not in bundled:
        raise ValueError(
            f"SAMPLER '{sampler_type}' is Dassl's, and the bundled engine is in use: install Dassl, or choose one of "
            f"{', '.join(bundled)}."
        )
    return bundled[sampler_type](data_source)
