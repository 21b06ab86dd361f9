"""The suite tries a sample of some parameters' values; `pytest --whole` tries all, and what is named is always run."""

from types import SimpleNamespace

import pytest
from conftest import pytest_collection_modifyitems
from support import mostly_slow


def marks(params):
    return {param.id or param.values[0]: {mark.name for mark in param.marks} for param in params}


def test_what_is_neither_quick_nor_in_the_sample_is_for_the_whole():
    slow, whole = {"slow"}, {"slow", "whole"}
    assert marks(mostly_slow("abc", "a")) == {"a": set(), "b": slow, "c": slow}
    assert marks(mostly_slow("abc", "a", sample="b")) == {"a": set(), "b": slow, "c": whole}
    given = [pytest.param(1, True, id="one"), pytest.param(2, False, id="two", marks=pytest.mark.skip)]
    found = mostly_slow(given, sample=["one"])
    assert marks(found) == {"one": slow, "two": {*whole, "skip"}} and [p.values for p in found] == [(1, True), (2, False)]
    with pytest.raises(ValueError, match=r"\['d'\] are none of the values \['a', 'b', 'c'\]"):
        mostly_slow("abc", "a", sample="d")


@pytest.mark.parametrize(("whole", "named", "left"), [(False, (), "a"), (True, (), "abc"), (False, ("b",), "ab")])
def test_the_sample_is_collected_unless_the_whole_is_asked_for_or_a_test_is_named(whole, named, left):
    items, gone = [], []

    def deselected(items):
        gone.extend(items)

    for name in "abc":
        marker = None if name == "a" else pytest.mark.whole
        items.append(SimpleNamespace(nodeid=name, get_closest_marker=lambda _, marker=marker: marker))
    hook = SimpleNamespace(pytest_deselected=deselected)
    config = SimpleNamespace(option=SimpleNamespace(whole=whole, keyword=""), args=["tests", *named], hook=hook)
    pytest_collection_modifyitems(config, items)
    assert "".join(item.nodeid for item in items) == left and len(items) + len(gone) == 3
