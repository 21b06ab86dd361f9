"""The batches of a training are a function of seed and epoch alone."""

import random
from collections.abc import Callable

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler

from kdpl.training.batches import EpochLoader, epoch_seed, seeded


class Numbers(Dataset):
    """Each item is its index and what augmentation would draw."""

    def __init__(self, count: int):
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, object]:
        return {"index": int(index), "draws": [random.random(), float(torch.rand(()))], "impath": str(index)}


def loader(count: int, batch: int, drop_last: bool, sampler: Callable = RandomSampler) -> DataLoader:
    dataset = Numbers(count)
    return DataLoader(dataset, batch_sampler=BatchSampler(sampler(dataset), batch, drop_last))


def content(batches: list[dict]) -> list[tuple]:
    return [(b["index"].tolist(), [d.tolist() for d in b["draws"]]) for b in batches]


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 30), st.integers(1, 9), st.booleans(), st.integers(0, 2**31), st.integers(0, 5))
def test_an_epochs_batches_and_augmentations_depend_on_seed_and_epoch_alone(count, batch, drop_last, seed, epoch):
    ours = EpochLoader(loader(count, batch, drop_last), seed)
    ours.epoch = epoch
    with seeded(epoch_seed(seed, epoch)):
        plain = [b["index"].tolist() for b in loader(count, batch, drop_last)]
    random.seed(seed + 1)  # what ran before is of no account
    expected = content(list(ours))
    torch.manual_seed(seed + 2)
    assert content(list(ours)) == expected
    assert [index for index, _ in expected] == plain


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 30), st.integers(1, 9), st.data())
def test_an_epoch_that_begins_in_its_middle_gives_the_rest_of_the_batches(count, batch, data):
    whole = EpochLoader(loader(count, batch, False), 7)
    expected = content(list(whole))
    whole.start = data.draw(st.integers(0, len(expected)))
    assert content(list(whole)) == expected[whole.start :]
