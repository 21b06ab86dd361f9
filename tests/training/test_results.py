"""The results file of a run: what is kept, what is replaced, and what damage does."""

import json

import pytest
from support.files import RUN, result

from kdpl.common.environment import git_state, versions
from kdpl.config.manifest import OtherRunError
from kdpl.training.results import ResultsError, check_result, read_results, results_or_none, write_results


def accuracies(folder) -> dict[tuple[str, str], float]:
    return {(r["dataset"], r["classes"]): r["accuracy"] for r in read_results(folder)["results"]}


def test_results_of_several_data_sets_gather_in_one_file(tmp_path):
    path = write_results(tmp_path / "new" / "folder", RUN, result())
    write_results(tmp_path / "new" / "folder", RUN, result("EmojiVehicles", 20.0))
    write_results(tmp_path / "new" / "folder", RUN, result(accuracy=30.0, classes="new"))
    content = read_results(path)
    assert content["schema"] == 1
    assert {key: content[key] for key in RUN} == RUN
    assert accuracies(path) == {("EmojiMeals", "all"): 50.0, ("EmojiVehicles", "all"): 20.0, ("EmojiMeals", "new"): 30.0}


def test_a_later_test_of_the_same_images_replaces_the_earlier_one(tmp_path):
    write_results(tmp_path, RUN, result(source_domains=("twemoji",)))
    write_results(tmp_path, RUN, result(accuracy=60.0, source_domains=["twemoji"]))
    write_results(tmp_path, RUN, result(accuracy=70.0, target_domains=["fluent"]))
    assert [r["accuracy"] for r in read_results(tmp_path)["results"]] == [60.0, 70.0]


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (b'{"schema": 1, "trainer": "CoOp", "resul', "not JSON"),
        (b"[]", "TypeError"),
        (b'{"schema": 2, "trainer": "CoOp", "results": []}', "'schema' is 2"),
        (b'{"schema": 1, "trainer": "CoOp"}', "KeyError: 'results'"),
        (b'{"schema": 1, "trainer": "CoOp", "results": [{"dataset": "EmojiMeals"}]}', "a result lacks split"),
        (
            json.dumps({"schema": 1, "trainer": "x", "results": [{**result(), "time": "", "accuracy": 5000}]}).encode(),
            "percent",
        ),
    ],
)
def test_a_damaged_file_is_named_and_stays(tmp_path, damage, complaint):
    path = tmp_path / "results.json"
    path.write_bytes(damage)
    for call, args in ((read_results, ()), (check_result, (RUN, result())), (write_results, (RUN, result()))):
        with pytest.raises(ResultsError, match=complaint):
            call(tmp_path, *args)
    assert path.read_bytes() == damage and results_or_none(tmp_path) is None


def test_a_result_of_another_run_or_on_other_images_is_refused_before_the_test(tmp_path):
    write_results(tmp_path, RUN, result(images="6 (a)"))
    check_result(tmp_path, RUN, result(images="6 (a)"))
    for run, images, message in ((RUN | {"seed": 2}, "6 (a)", "seed 1, now 2"), (RUN, "6 (b)", r"6 \(a\) there, 6 \(b\) now")):
        with pytest.raises(OtherRunError, match=message):
            check_result(tmp_path, run, result(images=images))
    with pytest.raises(OtherRunError):
        write_results(tmp_path, RUN | {"seed": 2}, result())


def test_versions_and_commit_are_recorded(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no test of this run has finished"):
        read_results(tmp_path)
    content = read_results(write_results(tmp_path, RUN, result()))
    assert content["versions"] == versions() and {"python", "torch", "kdpl", "dassl"} <= set(content["versions"])
    assert content["git"] == git_state()
