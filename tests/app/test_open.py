"""`kdpl open` as a person uses it: a real server, a real Chromium, and pages and programs that should get nothing."""

import csv
import http.client
import http.server
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from support import ROOT, processes

from kdpl.app.journal import Journal, replay
from kdpl.common.safe_text import REJECTED
from kdpl.photos.fit import write_demo

CHANGE = {"Content-Type": "application/json"}
FLAGS = ("--no-browser", "--quiet", "--student", "emoji_student", "--teacher", "emoji_teacher")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """150 photos of the demo, and its names."""
    folder = tmp_path_factory.mktemp("demo")
    photos, names = write_demo(folder)
    for photo in sorted(photos.iterdir())[150:]:
        photo.unlink()
    return photos, names


@contextmanager
def opened(*args):
    """A server of `kdpl open`; gives its process and address."""
    command = [sys.executable, "-u", "-m", "kdpl", "open", *map(str, args), *FLAGS]
    process = processes.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        seen = []
        for line in process.stdout:
            seen.append(line)
            if line.startswith("http://"):
                break
        assert seen and seen[-1].startswith("http://"), "".join(seen)
        yield process, seen[-1].strip()
    finally:
        process.kill()
        process.wait()


def ask(address, path, method="GET", body=None, **headers):
    where = urlsplit(address)
    connection = http.client.HTTPConnection(where.hostname, where.port, timeout=60)
    connection.request(method, path, body, {"Host": where.netloc, **headers})
    answer = connection.getresponse()
    return answer.status, answer.read()


def state(address, photos=0, words=False):
    """The state, once so many photos are sorted; with `words` there may be some of what is being done."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        found = json.loads(ask(address, f"{urlsplit(address).path}api/state")[1])
        if len(found["best"]) >= photos and (words or not found["doing"]):
            return found
        time.sleep(0.3)
    raise AssertionError(found["doing"])


def paths_of(address):
    return json.loads(ask(address, f"{urlsplit(address).path}api/state?paths=0")[1])["paths"]


def change(address, **content):
    status, body = ask(address, f"{urlsplit(address).path}api/change", "POST", json.dumps(content), **CHANGE)
    return status, json.loads(body)


def test_what_was_answered_is_kept_by_a_killed_server_and_predicted_by_kdpl_predict(demo, tmp_path):
    photos, names = demo
    out, words = tmp_path / "out", names.read_text().split("\n")[:8]
    with opened(photos, "-o", out) as (process, address):
        state(address, 150)
        assert change(address, do="add", names=words)[0] == 200
        assert change(address, do="rename", name=0, to="amphora vase")[0] == 200
        status, found = change(address, do="label", each=[[[3, 5], words[1]]])
        assert status == 200 and [found["label"][i] for i in (3, 4, 5)] == [1, -2, 1]
        status, refused = change(address, do="add", names=["a b c d " * 24])
        assert status == 400 and "tokens" in refused["error"] and state(address)["undo"] == "label 2 photos"
        assert change(address, do="label", each=[[[7], None]])[1]["label"][7] == -1
        assert change(address, do="undo")[1]["label"][7] == -2
        other = next(i for i, best in enumerate(found["best"]) if best != 2 and i not in (3, 5))  # a label against the head
        assert change(address, do="label", each=[[[other], words[2]]])[0] == 200
        status, found = change(address, do="label", each=[[[9], None]])
        process.send_signal(signal.SIGKILL)
    with opened(out) as (process, address):
        again = state(address, 150)
        assert [name["name"] for name in again["names"]] == ["amphora vase", *words[1:]]
        assert {key: again[key] for key in ("best", "label", "verdict")} == {
            key: found[key] for key in ("best", "label", "verdict")
        }
        paths = paths_of(address)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) in (0, 75)
    table = tmp_path / "predictions.csv"
    command = [sys.executable, "-m", "kdpl", "predict", out, photos, "--csv", table, "--quiet"]
    assert processes.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, check=False).returncode == 0
    with open(table, newline="", encoding="utf-8") as file:
        predicted = {Path(row["path"]).name: row["name"] for row in csv.DictReader(file)}
    given = [path for path, label in zip(paths, again["label"], strict=True) if label >= -1]
    place = [best if label == -2 else label for best, label in zip(again["best"], again["label"], strict=True)]
    shown = {path: again["names"][i]["name"] if i >= 0 else REJECTED for path, i in zip(paths, place, strict=True)}
    sure = {path for path, margin in zip(paths, again["margin"], strict=True) if margin > 0.001}.union(given)
    assert len(given) == 4 and len(sure) > 100 and all(predicted[path] == shown[path] for path in sure)


def raw(address, request, host=None):
    """The answer to a request that no HTTP library would send; `@` stands for the path with the token."""
    where = urlsplit(address)
    lines = [request.replace("@", where.path), *([f"Host: {host or where.netloc}"] if host != "" else []), "Connection: close"]
    with socket.create_connection((where.hostname, where.port), timeout=30) as connection:
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        return b"".join(iter(lambda: connection.recv(65536), b""))


def test_nothing_is_sent_to_others_and_no_file_outside_the_photos(demo, tmp_path):
    (tmp_path / "secret.txt").write_text("secret")
    photos = tmp_path / "photos"
    shutil.copytree(demo[0], photos)
    link = photos / "IMG_0001.png"
    with opened(photos, demo[1], "-o", tmp_path / "out") as (process, address):
        state(address, 150)
        root = urlsplit(address).path
        assert ask(address, root)[0] == 200
        evil = json.dumps({"do": "add", "names": ["evil"]})
        assert all(ask(address, path)[0] == 404 for path in ("/", "/api/state", "/wrong/api/state", f"/{root}/"))
        for headers in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "cross-site"},
                        {"Sec-Fetch-Site": "same-site"}, {"Origin": "null"}):  # fmt: skip
            assert ask(address, f"{root}api/state", **headers)[0] == 403
            assert ask(address, f"{root}api/change", "POST", evil, **CHANGE, **headers)[0] == 403
        assert ask(address, f"{root}api/change", "POST", evil, **{"Content-Type": "text/plain"})[0] == 415
        assert change(address, do="label", each=[[[10**6], "x"]])[0] == 400
        ways = ["../secret.txt", "%2e%2e/secret.txt", "..%2fsecret.txt", "%2e%2e%2fsecret.txt", "photo/..%2fsecret.txt"]
        ways += [
            "photo/../../secret.txt",
            f"photo/{tmp_path}/secret.txt",
            "/secret.txt",
            "photo/9999",
            "photo/-1",
            "photo/1%00",
        ]
        for path in [f"@{way}" for way in [*ways, "server.py"]] + [f"{tmp_path}/secret.txt", f"//{tmp_path}/secret.txt", "*"]:
            answer = raw(address, f"GET {path} HTTP/1.1")
            assert b"secret" not in answer and answer.split()[1] in (b"400", b"404"), path
        evil = "evil.example"
        for request, host in (("GET @ HTTP/1.1", evil), ("GET @ HTTP/1.0", ""), (f"GET http://{evil}@ HTTP/1.1", evil),
                              ("GET @api/state HTTP/1.1", f"{evil}:{urlsplit(address).port}")):  # fmt: skip
            assert raw(address, request, host).split()[1] in (b"400", b"403"), request
        upgrade = "GET @api/state HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nOrigin: http://evil.example"
        upgrade += "\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13"
        assert raw(address, upgrade).split()[1] == b"403"
        link.unlink()
        shutil.copy(photos / "IMG_0002.png", tmp_path / "private.png")
        link.symlink_to(tmp_path / "private.png")
        number = paths_of(address).index("IMG_0001.png")
        assert ask(address, f"{root}photo/{number}")[0] == 404
        assert "evil" not in Journal(tmp_path / "out").path.read_text()
        others = [line.split() for line in Path(f"/proc/{process.pid}/net/tcp").read_text().splitlines()[1:]]
        port = f":{urlsplit(address).port:04X}"
        assert {fields[1] for fields in others if fields[1].endswith(port) and fields[3] == "0A"} == {f"0100007F{port}"}


def test_a_page_of_another_origin_gets_nothing_in_chromium(demo, tmp_path, browser):
    with opened(*demo, "-o", tmp_path / "out") as (_, address):
        state(address, 150)
        evil = f"""<title>evil</title><img src="{address}photo/0" onload="got.push('image')"><script>window.got = [];</script>
        <script src="{address}parts.js" onload="got.push('script')"></script>
        <link rel="stylesheet" href="{address}app.css" onload="got.push('style')">
        <form id="form" method="post" enctype="text/plain" action="{address}api/change" target="frame">
        <input name='{{"do":"add","names":["evil' value='"]}}'></form><iframe name="frame"></iframe><script>
        (async () => {{
          for (const mode of ["cors", "no-cors"]) for (const type of ["text/plain", "application/json"]) {{
            try {{ const a = await fetch("{address}api/state", {{mode}}); got.push(await a.text()); }} catch {{ }}
            const sent = {{method: "POST", mode, headers: {{"Content-Type": type}}, body: '{{"do":"add","names":["evil"]}}'}};
            try {{ await fetch("{address}api/change", sent); }} catch {{ }}
          }}
          const socket = new WebSocket("{address.replace("http", "ws")}api/state");
          socket.onopen = () => got.push("socket");
          form.submit();
          const frame = document.body.appendChild(document.createElement("iframe")); frame.src = "{address}";
          const other = window.open("{address}");
          await new Promise(done => setTimeout(done, 1500));
          try {{ got.push(frame.contentDocument.body.innerText); }} catch {{ }}
          try {{ got.push(other.document.body.innerText); }} catch {{ }}
          window.done = true; }})();</script>"""

        class Evil(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200)
                self.send_header("Content-Type", "text/html")
                self.end_headers()
                self.wfile.write(evil.encode())

            def log_message(self, *args):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Evil)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page = browser.new_page()
        for origin in (f"http://localhost:{server.server_port}/", f"http://evil.example:{server.server_port}/"):
            page.goto(origin)
            page.wait_for_function("window.done", timeout=20000)
            assert "".join(page.evaluate("window.got")) == ""
        rebound = address.replace("127.0.0.1", "evil.example")  # its own name leads here now
        with pytest.raises(Exception, match="ERR_HTTP_RESPONSE_CODE_FAILURE"):  # 403, and nothing else
            page.goto(rebound)
        server.shutdown()
        assert "evil" not in [name.name for name in replay(Journal(tmp_path / "out").read()).names]
        page.context.close()


def test_names_and_paths_are_text_in_chromium(demo, tmp_path, browser):
    photos, words = tmp_path / "<img src=x onerror=alert(1)>", tmp_path / "names.txt"
    photos.mkdir()
    names = ["<img src=x onerror=alert(1)>", "&amp;\"'", "\u05e9\u05dc\u05d5\u05dd"]
    words.write_text("\n".join(names), encoding="utf-8")
    files = ["<script>alert(1)<\u2215script>.png", "exe.\u202egnp.png", "two\nlines.png", os.fsdecode(b"latin-\xe9.png")]
    for photo, file in zip(sorted(demo[0].iterdir()), files, strict=False):
        shutil.copy(photo, photos / file)
    with opened(photos, words, "-o", tmp_path / "out") as (_, address):
        assert len(state(address, len(files))["names"]) == 3
        page, bad = browser.new_page(), []
        page.on("dialog", lambda dialog: (bad.append(dialog.message), dialog.dismiss()))
        page.on("console", lambda message: bad.append(message.text) if message.type == "error" else None)
        page.goto(address)
        page.locator(".card").nth(len(files) - 1).wait_for()
        assert page.locator("#names .name bdi").all_text_contents()[:3] == names
        shown = page.locator(".card .path bdi").all_text_contents()
        assert sorted(shown) == sorted(files)
        assert page.locator("h1").inner_text() == page.title() == photos.name
        assert page.locator("img[src=x], main script").count() == 0 and bad == []
        page.fill("#new", "cat\u202egod")
        page.click("#add button")
        page.locator("#error", has_text="without control characters").wait_for()
        page.close()


@pytest.fixture
def visit(browser):
    """Opens a page whose errors are seen at the end."""
    errors, pages = [], []

    def open_page(address, width=1600, **options):
        page = browser.new_page(viewport={"width": width, "height": 800}, **options)
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(address)
        pages.append(page)
        return page

    yield open_page
    for page in pages:
        page.close()
    assert [error for error in errors if "net::ERR_" not in error] == []


def undo_is(page, text):
    page.locator("#undo", has_text=f"Undo: {text}").wait_for()


def give_photos(page, labels):
    """Drag, select, type: photos get names, and one is none of them."""
    page.locator(".card").first.drag_to(page.locator("#names li").nth(1))
    undo_is(page, "label 1 photo")
    assert labels() == [2]
    page.click("#undo")
    undo_is(page, "merge loaf")
    page.locator("#grid").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Space")
    page.keyboard.press("Shift+ArrowRight")
    page.keyboard.press("1")
    undo_is(page, "label 2 photos")
    assert set(labels()) == {0}
    page.keyboard.press("n")
    page.locator("#names .none data", has_text="1").wait_for()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")  # as large as there is room, and from there to another name, of which the begin is enough
    page.locator("#viewer[open]").wait_for()
    page.keyboard.press("l")
    page.keyboard.type("birth")
    page.keyboard.press("Enter")
    page.locator("#give").wait_for(state="hidden")
    assert page.locator("#names bdi").all_text_contents() == ["amphora", "birthday cake", "bread", "(none of these)"]
    assert sorted(map(str, labels())) == ["0", "2", "None"]
    assert page.evaluate("() => document.activeElement.id") == "grid"


def test_a_list_of_names_is_mended_by_mouse_and_by_keys_in_chromium(demo, tmp_path, visit):
    out, words = tmp_path / "out", tmp_path / "names.txt"
    words.write_text("amphora\nbicycle\nbacon\nbread\n")
    journal = Journal(out)
    with opened(demo[0], words, "-o", out) as (process, address):
        state(address, 150)
        page = visit(address)
        page.locator(".card").first.wait_for()
        assert page.locator("#undo").is_disabled()  # the first names are nobody's change
        page.locator("#names .name", has_text="bicycle").focus()
        page.keyboard.press("Delete")
        undo_is(page, "delete bicycle")
        assert page.evaluate("() => document.activeElement.title") == "bacon"  # focus stays among the names
        page.keyboard.press("F2")
        page.fill("#renamed", "birthday cake")
        page.keyboard.press("Enter")
        undo_is(page, "rename bacon")
        page.fill("#new", "loaf")
        page.keyboard.press("Enter")
        undo_is(page, "add loaf")
        page.locator("#names .name", has_text="loaf").drag_to(page.locator("#names li", has_text="bread"))
        undo_is(page, "merge loaf into bread")

        give_photos(page, lambda: list(replay(journal.read()).labels.values()))
        page.click("#check")
        page.locator("#question b").wait_for()
        page.keyboard.press("y")
        page.locator("#accuracy", has_text="1 of 1 random photos are right: 100.0%, 95 % interval 20.7% to 100.0%.").wait_for()
        page.keyboard.press("n")
        page.locator("#accuracy", has_text="1 of 2 random photos are right: 50.0%, 95 % interval 9.5% to 90.5%.").wait_for()
        page.keyboard.press("Escape")
        other = visit(address)
        other.locator(".card").first.wait_for()
        other.fill("#new", "candy")
        other.keyboard.press("Enter")
        page.locator("#names bdi", has_text="candy").wait_for()  # in the first tab, too
        before = state(address)
        process.kill()
        process.wait()
        page.click("#undo")
        page.locator("#error", has_text="start kdpl open again").wait_for()
    with opened(demo[0], words, "-o", out) as (_, address):  # the same command: names that were deleted stay away
        after = state(address, 150)
        assert {k: after[k] for k in ("best", "label", "names")} == {k: before[k] for k in ("best", "label", "names")}
        page = visit(address)
        undo_is(page, "add candy")


def test_a_pile_without_names_gets_some_on_a_phone_in_chromium(demo, tmp_path, visit):
    shutil.copytree(demo[0], tmp_path / "photos")
    with opened(tmp_path / "photos", "-o", tmp_path / "out") as (_, address):
        state(address, 150)
        page = visit(address, 360, has_touch=True, color_scheme="dark")
        page.locator(".head input").first.wait_for(timeout=60000)
        page.fill(".head input >> nth=0", "my own name")
        page.keyboard.press("Enter")
        undo_is(page, "label 3 photos")
        page.locator(".head button", has_text="Not a group").first.tap()
        page.locator("#useall").tap()
        page.locator("#names li").nth(20).wait_for()
        page.locator(".tick").nth(1).tap()
        page.locator("#confirm").tap()
        undo_is(page, "label 1 photo")
        small = """() => [...document.querySelectorAll('button, select, input, .tick')].filter(
            b => b.offsetHeight && (b.offsetHeight < 44 || b.offsetWidth < 44)).map(b => b.outerHTML)"""
        assert page.evaluate(small) == []
        assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
        nameless = """() => [...document.querySelectorAll('button, select, input')].filter(
            b => !(b.ariaLabel || b.innerText || b.labels?.length)).map(b => b.outerHTML)"""
        assert page.evaluate(nameless) == []
        page.click("#keywords")
        page.locator("#doing", has_text="150 of 150 sidecars written").wait_for()
        found = state(address, words=True)
        names = {name["name"] for name in found["names"]}
        assert len(names) > 20 and len(list((tmp_path / "photos").glob("*.xmp"))) == len(found["best"])


def test_a_folder_that_is_missing_is_named(tmp_path):
    command = [sys.executable, "-m", "kdpl", "open", str(tmp_path / "nowhere")]
    process = processes.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert process.returncode == 2 and re.search("'.*nowhere' is not a folder", process.stderr)


def test_photos_of_one_folder_are_not_taken_for_those_of_another(demo, tmp_path):
    folders = [tmp_path / name / "photos" for name in "ab"]
    for folder in folders:
        folder.mkdir(parents=True)
        shutil.copy(sorted(demo[0].iterdir())[0], folder)
    with opened(folders[0], "-o", tmp_path / "out") as (_, address):
        state(address, 1)
    command = [sys.executable, "-m", "kdpl", "open", *map(str, (folders[1], "-o", tmp_path / "out")), *FLAGS]
    process = processes.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=30)
    assert process.returncode == 2 and re.search("is of the photos in '.*/a/photos'", process.stderr)
    shutil.move(folders[0], tmp_path / "moved")  # to another place, or another machine
    with opened(tmp_path / "moved", "-o", tmp_path / "out") as (_, address):
        assert len(state(address, 1)["best"]) == 1
