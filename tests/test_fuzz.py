"""Whatever files, archives and command lines hold: loading them ends well, or in the errors that the loader documents.

`scripts/fuzz.sh` runs the same properties for as long as it is told.
"""

import pytest
from support.fuzzing import SOUND, TARGETS, Target, property_of, text


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SOUND)
def test_what_is_damaged_here_was_sound_before(name, tmp_path):
    TARGETS[name].check(SOUND[name](), tmp_path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TARGETS)
def test_no_content_ends_in_another_error_than_the_documented_ones(name):
    property_of(name, max_examples=25, derandomize=True)()


def test_a_loader_that_ends_in_another_error_is_found(monkeypatch):
    def check(content, folder):
        raise KeyError("not documented")

    monkeypatch.setitem(TARGETS, "class names", Target(text, check, ValueError))
    with pytest.raises(KeyError):
        property_of("class names", max_examples=5, derandomize=True)()
