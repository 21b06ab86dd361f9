"""The results file of a run: what is kept, what is replaced, and what damage does."""

import json
import threading

import pytest
from support.files import RUN, result

from kdpl.common.environment import git_state, versions
from kdpl.experiments.results import ResultsError, missing_datasets, read_results, same_dataset, write_results
from kdpl.results import main


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
        (b"", "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        (b"[]", "'schema' is None"),
        (b'{"schema": 1, "trainer": "CoOp"}', "'results' is None"),
        (b'{"schema": 1, "results": []}', "'trainer' is None"),
        (b'{"schema": 1, "trainer": "CoOp", "results": [{"dataset": "EmojiMeals"}]}', "result 0 lacks split"),
    ],
)
def test_a_damaged_file_is_named_when_read_and_moved_aside_when_written(tmp_path, capsys, damage, complaint):
    path = tmp_path / "results.json"
    for n in (1, 2):
        path.write_bytes(damage)
        with pytest.raises(ResultsError, match=complaint):
            read_results(path)
        write_results(tmp_path, RUN, result())
        assert accuracies(tmp_path) == {("EmojiMeals", "all"): 50.0}
        assert (tmp_path / f"results.json.damaged-{n}").read_bytes() == damage
        assert f"results.json.damaged-{n}" in capsys.readouterr().out


def test_a_number_that_is_no_number_is_damage(tmp_path):
    path = write_results(tmp_path, RUN, result())
    content = json.loads(path.read_text())
    content["results"][0]["accuracy"] = "fifty"
    path.write_text(json.dumps(content))
    with pytest.raises(ResultsError, match="the accuracy of result 0 is 'fifty'"):
        read_results(path)


def test_a_file_of_a_newer_schema_is_refused_by_name(tmp_path):
    (tmp_path / "results.json").write_text('{"schema": 2}')
    with pytest.raises(ResultsError, match=r"schema 2.*newer kdpl"):
        read_results(tmp_path)
    assert main(["done", str(tmp_path)]) == 2


def test_results_of_another_run_in_the_same_folder_are_not_mixed_in(tmp_path, capsys):
    write_results(tmp_path, RUN, result())
    write_results(tmp_path, RUN | {"seed": 2}, result("EmojiVehicles"))
    assert accuracies(tmp_path) == {("EmojiVehicles", "all"): 50.0}
    assert accuracies(tmp_path / "results.json.other-1") == {("EmojiMeals", "all"): 50.0}
    assert "seed 1, now 2" in capsys.readouterr().out


def test_a_missing_file_is_told_from_a_damaged_one(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no test of this run has finished"):
        read_results(tmp_path)


def test_a_reader_never_sees_half_a_file(tmp_path):
    write_results(tmp_path, RUN, result())
    writer = threading.Thread(target=lambda: [write_results(tmp_path, RUN, result(accuracy=float(a))) for a in range(20)])
    writer.start()
    while writer.is_alive():
        assert len(read_results(tmp_path)["results"]) == 1
    writer.join()
    assert accuracies(tmp_path) == {("EmojiMeals", "all"): 19.0}
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


def test_versions_and_commit_are_recorded(tmp_path):
    content = read_results(write_results(tmp_path, RUN, result()))
    assert content["versions"] == versions()
    assert set(content["versions"]) == {"python", "torch", "kdpl", "dassl"}
    assert content["versions"]["dassl"]
    assert content["git"] == git_state()


@pytest.mark.parametrize(
    ("stem", "name"),
    [("emoji_meals", "EmojiMeals"), ("dtd", "DescribableTextures"), ("imagenet_a", "ImageNetA"), ("sun397", "SUN397")],
)
def test_a_configs_stem_and_the_registered_name_are_the_same_data_set(stem, name):
    assert same_dataset(stem, name)
    assert not same_dataset(stem, "ImageNet")


def test_done_tells_which_data_sets_are_missing(tmp_path, capsys):
    assert main(["done", str(tmp_path)]) == 1
    write_results(tmp_path, RUN, result(classes="base"))
    assert main(["done", str(tmp_path)]) == 1
    capsys.readouterr()
    assert main(["done", str(tmp_path), "--classes", "base"]) == 0
    assert main(["done", str(tmp_path), "--classes", "base", "--datasets", "emoji_meals"]) == 0
    assert capsys.readouterr().out == ""
    assert main(["done", str(tmp_path), "--classes", "base", "--datasets", "dtd", "emoji_meals", "sun397"]) == 1
    assert capsys.readouterr().out == "dtd\nsun397\n"


def test_a_validation_result_or_a_damaged_file_is_not_done(tmp_path):
    write_results(tmp_path, RUN, result(split="val"))
    assert missing_datasets(tmp_path, ["emoji_meals"]) == ["emoji_meals"]
    (tmp_path / "results.json").write_text("{")
    assert missing_datasets(tmp_path, ["emoji_meals"], split="val") == ["emoji_meals"]


def test_a_result_on_other_domains_is_not_the_one_that_is_missing(tmp_path):
    write_results(tmp_path, RUN, result(target_domains=["noto", "fluent"]))
    assert missing_datasets(tmp_path, ["emoji_meals"]) == missing_datasets(tmp_path, domains=["noto", "fluent"]) == []
    assert missing_datasets(tmp_path, ["emoji_meals"], domains=[]) == ["emoji_meals"]


def test_a_test_older_than_the_training_it_tested_is_not_done(tmp_path):
    path = write_results(tmp_path / "train", RUN, result(classes="base"))
    write_results(tmp_path / "test", RUN, result(classes="new"))
    assert missing_datasets(tmp_path / "test", classes="new", model_dir=tmp_path / "train") == []
    content = json.loads(path.read_text())
    content["results"][0]["time"] = "2999-01-01T00:00:00+00:00"
    path.write_text(json.dumps(content))
    assert missing_datasets(tmp_path / "test", classes="new", model_dir=tmp_path / "train") == ["any"]
