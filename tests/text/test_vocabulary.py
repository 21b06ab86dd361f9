"""Vocabularies: which names come out of each kind of source, and what is said about sources that are no good."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from kdpl.text import vocabulary
from kdpl.text.prompts import encode
from kdpl.text.vocabulary import VocabularyError, check_vocabulary, load_vocabulary

TABLE = b'LabelName,DisplayName\r\n/m/01,Tulip\r\n/m/02,"Hat, straw"\r\n/m/03,tulip\r\n'


def names_file(tmp_path, content, name="names.txt"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def error_of(path, **kwargs):
    with pytest.raises(VocabularyError) as caught:
        load_vocabulary(path, **kwargs)
    return str(caught.value)


@pytest.mark.slow
def test_imagenet21k_is_about_twenty_thousand_distinct_nouns_without_a_download(tmp_path, monkeypatch):
    monkeypatch.setenv("KDPL_CACHE", str(tmp_path / "cache"))
    names = load_vocabulary("imagenet21k")
    assert 19_000 < len(names) < 22_000
    assert {"tench", "great white shark", "goldfish"} <= set(names)
    assert not any("," in n or "_" in n or "\t" in n for n in names)
    assert len({tuple(encode(n)) for n in names}) == len(names)
    assert not (tmp_path / "cache").exists()


@pytest.fixture
def open_images(tmp_path, monkeypatch):
    """A server on loopback that stands for Open Images; its `content` is what it answers, its `asked` counts."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.asked += 1
            self.send_response(200)
            self.send_header("Content-Length", str(self.server.announced or len(self.server.content)))
            self.end_headers()
            self.wfile.write(self.server.content)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.content, server.announced, server.asked = TABLE, 0, 0
    server.cached = tmp_path / "vocabularies" / "oidv7-class-descriptions.csv"
    monkeypatch.setenv("KDPL_CACHE", str(tmp_path))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(vocabulary, "OPENIMAGES_URL", f"http://127.0.0.1:{server.server_port}/{server.cached.name}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_openimages_is_downloaded_once(open_images):
    for _ in range(2):
        assert load_vocabulary("openimages") == ["Tulip", "Hat, straw"]
    assert open_images.asked == 1


@pytest.mark.parametrize(
    ("content", "announced", "why"),
    [(b"<html>please log in</html>", 0, "not a table"), (TABLE[:30], len(TABLE), "30 of")],
)
def test_an_answer_that_is_not_the_table_is_not_kept(open_images, content, announced, why):
    open_images.content, open_images.announced = content, announced
    message = error_of("openimages")
    assert why in message or "IncompleteRead" in message
    assert not open_images.cached.exists()
    assert vocabulary.OPENIMAGES_URL in message and str(open_images.cached.parent) in message, "where it may be put by hand"


def test_a_text_file_holds_one_name_a_line(tmp_path):
    assert load_vocabulary(names_file(tmp_path, "red_fox\n\n  hot  dog \r\nHat, straw")) == [
        "red fox",
        "hot dog",
        "Hat, straw",
    ]


def test_a_csv_file_gives_its_column_of_names(tmp_path):
    content = 'id,ClassName\n1,red_fox\n2,"Hat, ""straw"""\n\n3,"two\nlines"\n'
    assert load_vocabulary(names_file(tmp_path, content, "v.CSV")) == ["red fox", 'Hat, "straw"', "two lines"]


def test_names_the_towers_cannot_tell_apart_are_merged_and_the_first_spelling_wins(tmp_path):
    assert load_vocabulary(names_file(tmp_path, "Red Fox\nred_fox\nRED  FOX\nred fox.\nR&amp;B\nR&B\n")) == [
        "Red Fox",
        "red fox.",
        "R&amp;B",
    ]


def test_the_data_sets_own_names_are_left_out_whatever_their_spelling(tmp_path, capsys):
    path = names_file(tmp_path, "Red Fox\nhot dog\ncat\n")
    assert load_vocabulary(path, exclude=["red_fox", "CAT", "zebra"]) == ["hot dog"]
    assert "left out 2 names" in capsys.readouterr().out
    assert "EXCLUDE_CLASSNAMES" in error_of(path, exclude=["red_fox", "CAT", "hot dog"])


def test_names_too_long_for_a_prompt_are_left_out_and_counted(tmp_path, capsys):
    path = names_file(tmp_path, "fox\n" + "\n".join(f"{'very ' * 60}{i}" for i in range(5)))
    assert load_vocabulary(path) == ["fox"]
    line = capsys.readouterr().out
    assert "left out 5 names" in line and "very very" in line and len(line) < 400
    assert "at most 3 tokens" in error_of(names_file(tmp_path, "a b c d\n"), longest=3)


@pytest.mark.parametrize(
    ("content", "name", "part"),
    [
        ("\n \n", "v.txt", "holds no name"),
        ("id,label\n1,fox\n", "v.csv", "no column ClassName in its header"),
        ('ClassName\nfox\n"open\n', "v.csv", "unexpected end of data"),
        (b"fox\ncaf\xe9\n", "v.txt", "not UTF-8"),
        ("n01440764\ttench\n", "v.txt", "tabs or binary data"),
        ("fox\n<|endoftext|>\n", "v.txt", "'<|endoftext|>' contains CLIP's start or end token"),
    ],
)
def test_a_file_that_is_no_list_of_names_is_told_why(tmp_path, content, name, part):
    message = error_of(names_file(tmp_path, content, name))
    assert name in message and part in message


def test_an_unknown_vocabulary_is_refused_with_the_closest_before_anything_is_read(tmp_path):
    with pytest.raises(VocabularyError, match="Did you mean 'imagenet21k'"):
        check_vocabulary("ImageNet-21k")
    for name in (tmp_path / "missing.txt", tmp_path):
        with pytest.raises(VocabularyError, match="neither a vocabulary nor a file"):
            check_vocabulary(str(name))
    check_vocabulary("openimages")
    check_vocabulary(names_file(tmp_path, b"\xff"))
