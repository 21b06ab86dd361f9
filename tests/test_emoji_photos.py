"""Photos of one's own in the embedded benchmark: data that are apart, and the pages that show what was measured."""

import sys
from itertools import product

import pytest
from support import ROOT

# isort: split

from kdpl.datasets.emoji import plans

sys.path.insert(0, str(ROOT / "benchmarks/emoji"))
import photos
import run


@pytest.mark.slow
def test_no_photo_is_in_two_splits_and_none_of_another_data_set_is_trained_on():
    trained: dict[tuple, set[str]] = {}
    for name in plans.PHOTOS:
        for scene in plans.scenes_of(name):
            trained.setdefault((scene.style, scene.thing, scene.rendering), set()).add(scene.split)
            assert scene.style_name == "twemoji"
    assert all(len(splits) == 1 for splits in trained.values()), "a scene of two splits"
    learned = {scene for scene, splits in trained.items() if splits != {"test"}}
    names = plans.PLANS.keys() - plans.PHOTOS.keys()
    others = {(s.style, s.thing, s.rendering) for name in names for s in plans.scenes_of(name)}
    assert len(learned) == 567 * 72 and not learned & others, "photos that are a test image elsewhere"


def test_the_benchmark_learns_from_scenes_that_no_data_set_has_and_tests_on_others():
    numbers = {scene.rendering for name in plans.PLANS for scene in plans.scenes_of(name)}
    learned = range(photos.FIRST, photos.FIRST + photos.POOL)
    tested = range(photos.FIRST + 500, photos.FIRST + 500 + photos.TESTS)
    assert not numbers & {*learned, *tested} and not {*learned} & {*tested}


def test_the_committed_figures_are_of_all_learners_and_five_seeds_and_the_pages_show_them():
    rows = run.committed(photos.MEASURED)
    piles = {*(photos.EACH.format(n) for n in photos.SHOTS), *photos.PILES}
    assert {(row["data set"], row["pile"]) for row in rows} == set(product((*photos.TARGETS, photos.MEAN), piles))
    assert len(rows) == 7 * 10 * len(photos.KINDS) and {row["seeds"] for row in rows} == {"5"}
    for (page, name), block in photos.blocks_of(rows).items():
        text = page.read_text(encoding="utf-8")
        assert run.with_block(text, name, block) == text, "python benchmarks/emoji/photos.py --publish"
