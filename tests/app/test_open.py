"""`kdpl open` as a person uses it: a real server, a real Chromium, and pages and programs that should get nothing."""

import csv
import http.client
import http.server
import json
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
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


def state(address, photos=0):
    """The state, once so many photos are sorted."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        found = json.loads(ask(address, f"{urlsplit(address).path}api/state")[1])
        if len(found["best"]) >= photos and not found["doing"]:
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


def test_nothing_is_sent_to_others_and_no_file_outside_the_photos(demo, tmp_path):
    (tmp_path / "secret.txt").write_text("secret")
    photos = tmp_path / "photos"
    shutil.copytree(demo[0], photos)
    link = photos / "IMG_0001.png"
    with opened(photos, demo[1], "-o", tmp_path / "out") as (_, address):
        state(address, 150)
        root = urlsplit(address).path
        assert ask(address, root)[0] == 200
        label = json.dumps({"do": "add", "names": ["evil"]})
        assert all(ask(address, path)[0] == 404 for path in ("/", "/api/state", "/wrong/api/state"))
        for path in ("../secret.txt", "%2e%2e/secret.txt", "photo/9999", "photo/-1", "thumb/..%2fsecret.txt", "server.py"):
            assert ask(address, root + path)[0] == 404, path
        for headers in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "cross-site"},
                        {"Sec-Fetch-Site": "same-site"}):  # fmt: skip
            assert ask(address, f"{root}api/state", **headers)[0] == 403
            assert ask(address, f"{root}api/change", "POST", label, **CHANGE, **headers)[0] == 403
        assert ask(address, f"{root}api/change", "POST", label, **{"Content-Type": "text/plain"})[0] == 415
        assert change(address, do="label", each=[[[10**6], "x"]])[0] == 400
        link.unlink()
        link.symlink_to(tmp_path / "secret.txt")
        number = paths_of(address).index("IMG_0001.png")
        assert ask(address, f"{root}photo/{number}")[0] == 404
        assert "evil" not in Journal(tmp_path / "out").path.read_text()


def test_a_page_of_another_origin_gets_nothing_in_chromium(demo, tmp_path, browser):
    with opened(*demo, "-o", tmp_path / "out") as (_, address):
        state(address, 150)
        evil = f"""<title>evil</title><img src="{address}thumb/0" onload="document.title='image'"><script>
        (async () => {{ const got = [];
          for (const mode of ["cors", "no-cors"]) {{
            try {{ const a = await fetch("{address}api/state", {{mode}}); got.push(await a.text()); }} catch {{ got.push(""); }}
            const evil = {{method: "POST", mode, body: '{{"do":"add","names":["evil"]}}'}};
            try {{ await fetch("{address}api/change", evil); }} catch {{ }}
          }}
          const frame = document.body.appendChild(document.createElement("iframe")); frame.src = "{address}";
          await new Promise(done => setTimeout(done, 1500));
          let inside = ""; try {{ inside = frame.contentDocument.body.innerText; }} catch {{ }}
          window.got = got.join("") + inside; window.done = true; }})();</script>"""

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
        page.goto(f"http://localhost:{server.server_port}/")
        page.wait_for_function("window.done", timeout=20000)
        assert page.evaluate("window.got") == "" and page.title() == "evil"
        server.shutdown()
        assert "evil" not in [name.name for name in replay(Journal(tmp_path / "out").read()).names]


@pytest.mark.parametrize("width", [1600, 360])
def test_names_are_changed_and_photos_dragged_in_chromium(demo, tmp_path, browser, width):
    out = tmp_path / "out"
    with opened(demo[0], "-o", out) as (process, address):
        page, errors = browser.new_page(viewport={"width": width, "height": 800}), []
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(address)
        page.locator(".head input").first.wait_for(timeout=60000)  # groups, since there are no names
        state(address, 150)
        for name in ("amphora", "bacon", "<b>bread</b>"):
            page.fill("#new", name)
            page.click("#add button")
            page.locator("#names bdi", has_text=name).wait_for()
        page.locator(".card").first.wait_for()
        assert page.locator("#names bdi").all_text_contents() == ["amphora", "bacon", "<b>bread</b>", "(none of these)"]
        assert page.locator("b").count() <= 1  # a name is text

        page.click("[aria-label='Rename, merge or delete bacon']")
        page.fill("#renamed", "birthday cake")
        page.click("#rename button[value=yes]")
        page.locator("#names bdi", has_text="birthday cake").wait_for()

        page.locator(".card").first.drag_to(page.locator("#names li").nth(1))
        page.locator("#undo", has_text="label 1 photo").wait_for()
        assert list(replay(Journal(out).read()).labels.values()) == [1]
        page.click("#undo")
        page.locator("#undo", has_text="rename bacon").wait_for()
        assert replay(Journal(out).read()).labels == {}

        page.locator("#grid").focus()  # by keys alone
        page.keyboard.press("ArrowRight")
        page.keyboard.press("Space")
        page.keyboard.press("Shift+ArrowRight")
        page.keyboard.press("1")
        page.locator("#undo", has_text="label 2 photos").wait_for()
        assert set(replay(Journal(out).read()).labels.values()) == {0}

        page.click("#check")
        page.locator("#question b").wait_for()
        page.keyboard.press("y")
        page.locator("#accuracy", has_text="1 of 1 random photos").wait_for()
        page.click("#enough")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        if width == 360:
            small = page.evaluate(
                "[...document.querySelectorAll('button')].filter(b => b.offsetHeight && b.offsetHeight < 44).length"
            )
            assert small == 0
        assert errors == []
        before = state(address)
        process.kill()
    with opened(out) as (_, address):
        page.goto(address)
        page.locator("#names bdi", has_text="birthday cake").wait_for()
        after = state(address, 150)
        assert {k: after[k] for k in ("best", "label", "checked")} == {k: before[k] for k in ("best", "label", "checked")}
        with suppress(Exception):
            page.close()


def test_a_folder_that_is_missing_is_named(tmp_path):
    command = [sys.executable, "-m", "kdpl", "open", str(tmp_path / "nowhere")]
    process = processes.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert process.returncode == 2 and re.search("'.*nowhere' is not a folder", process.stderr)
