"""What was answered as saved survives: the journal of `kdpl open`."""

import json

import pytest

from kdpl.app.journal import ChangeError, Journal, replay

ADD = {"do": "add", "names": ["cat", "dog"]}


def names(changes):
    return [each.words for each in replay(changes).names]


def test_a_merged_name_keeps_its_words_and_its_labels():
    changes = [ADD, {"do": "label", "each": [[["p", "q"], "dog"], [["r"], None]]}, {"do": "merge", "name": 1, "into": 0}]
    decided = replay(changes)
    assert names(changes) == [["cat", "dog"]] and decided.labels == {"p": 0, "q": 0, "r": None}


def test_undo_takes_back_one_change_after_the_other():
    label = {"do": "label", "each": [[["p"], "bird"]]}
    assert names([ADD, label]) == [["cat"], ["dog"], ["bird"]]
    assert replay([ADD, label, {"do": "undo"}]).labels == {} and names([ADD, label, {"do": "undo"}]) == [["cat"], ["dog"]]
    assert names([ADD, label, {"do": "undo"}, {"do": "undo"}, {"do": "undo"}]) == []


def test_a_deleted_name_takes_its_labels_along_and_a_new_one_of_the_same_text_has_none():
    again = {"do": "add", "names": ["cat"]}
    decided = replay([ADD, {"do": "label", "each": [[["p"], "cat"]]}, {"do": "delete", "name": 0}, again])
    assert decided.labels == {} and [each.name for each in decided.names] == ["dog", "cat"]


def test_checks_count_until_the_names_change():
    check = {"do": "check", "photo": "p", "right": True, "name": "cat"}
    assert replay([ADD, check]).checks == [("p", True)]
    decided = replay([ADD, check, {"do": "add", "names": ["cow"]}])
    assert decided.checks == [] and decided.checked == {"p"} and decided.labels == {"p": 0}


def test_a_change_of_what_is_gone_is_refused_and_not_written(tmp_path):
    journal = Journal(tmp_path)
    journal.add(ADD)
    journal.add({"do": "delete", "name": 0})
    for change in ({"do": "rename", "name": 0, "to": "x"}, {"do": "merge", "name": 1, "into": 1}, {"do": "delete", "name": 7}):
        with pytest.raises(ChangeError):
            journal.add(change)
    assert len(journal.read()) == 2


def test_two_processes_lose_nothing_of_each_other_and_a_cut_line_is_none(tmp_path):
    one, two = Journal(tmp_path), Journal(tmp_path)
    one.add(ADD)
    two.add({"do": "label", "each": [[["p"], "cat"]]})
    with open(one.path, "ab") as file:
        file.write(json.dumps({"do": "delete", "name": 0}).encode()[:9])  # killed in the middle
    assert len(two.read()) == 2
    one.add({"do": "label", "each": [[["q"], "dog"]]})
    assert replay(two.read()).labels == {"p": 0, "q": 1}
