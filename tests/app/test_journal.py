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
    check = {"do": "check", "each": [[["p"], "cat"]], "right": True}
    assert replay([ADD, check]).checks == {"p": True}
    decided = replay([ADD, check, {"do": "add", "names": ["cow"]}])
    assert decided.checks == {} and decided.labels == {"p": 0}


def test_undo_never_takes_the_first_names_away():
    first = {"do": "begin", "names": ["cat", "dog"]}
    decided = replay([first, {"do": "delete", "name": 0}, {"do": "undo"}, {"do": "undo"}])
    assert [each.name for each in decided.names] == ["cat", "dog"] and decided.last == ""


@pytest.mark.parametrize("text", ["", "  ", "x" * 201, "a\x00b", "cat\u202egod", 7, None])
def test_what_is_no_name_is_refused(tmp_path, text):
    journal = Journal(tmp_path)
    with pytest.raises(ChangeError, match="A name is one line"):
        journal.add({"do": "add", "names": [text]})
    assert journal.read() == []


def test_a_name_is_known_in_other_case_and_keeps_joiners_that_words_need():
    persian = "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"
    assert names([ADD, {"do": "add", "names": ["Cat", "DOG ", persian]}]) == [["cat"], ["dog"], [persian]]


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
