"""The gallery in a real browser: what it shows, how it is used, and that no name can make it do anything else."""

import csv
import re

import numpy as np
import pytest
from PIL import Image
from support import image_file, untrained_bundle

from kdpl.classifier.gallery import data_url, page_head, page_tail, row_line, thumbnail
from kdpl.predict import main

pytestmark = pytest.mark.slow

HOSTILE = [
    "<img src=x onerror=\"document.title='owned'\">",
    "</script><script>document.title='owned'</script>",
    "<!--<script>",
    "]]>\u2028\u2029&lt;b&gt;",
    "שלום \u202egnp.exe",
    "__proto__",
    "@DATA@ @POLICY@",
]


def picture(seed: int, size: tuple[int, int] = (64, 48)) -> Image.Image:
    colour = np.random.default_rng(seed).integers(0, 256, 3)
    return Image.new("RGB", size, tuple(int(c) for c in colour))


def ordinary_rows(count: int) -> list[tuple]:
    """Cats, dogs and birds in turn; the certainty of image i is unlike that of any other, and not in order."""
    kinds = ("cat", "dog", "bird")
    certainty = [0.5 + (i * 37 % count) / count / 2 for i in range(count)]
    return [(f"photos/img_{i}.jpg", [kinds[i % 3], kinds[(i + 1) % 3]], [certainty[i], 1 - certainty[i]]) for i in range(count)]


def write(path, rows, small=None):
    """Write a page of rows; `small` is the thumbnail of all, without it each has its own."""
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write(page_head({"title": "A title"}))
        for i, (image, names, probabilities) in enumerate(rows):
            picture_url = data_url(small or thumbnail(picture(i)))
            file.write(row_line(image, list(zip(names, probabilities, strict=True)), picture_url))
        file.write(page_tail({}))
    return path


# ------------------------------------------------------------------------------------------------------------ a browser


@pytest.fixture
def visit(browser):
    """Return a function that opens a file and gives the page; afterwards nothing may have been asked for, said or broken."""
    context = browser.new_context(viewport={"width": 900, "height": 700})
    requests, complaints = [], []

    def visit(path):
        page = context.new_page()
        page.on("requestfinished", lambda r: requests.append(r.url) if not r.url.startswith(("data:", "blob:")) else None)
        page.on("requestfailed", lambda r: complaints.append(f"{r.url} violates: {r.failure}"))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: complaints.append(message.text))
        page.on("dialog", lambda dialog: complaints.append(dialog.message))
        page.goto(path.as_uri())
        page.wait_for_selector(".card, #none:not([hidden])")
        opened.append(path.as_uri())
        return page

    opened: list[str] = []
    visit.complaints = complaints
    yield visit
    context.close()
    assert requests == opened and complaints == []


def paths(page) -> list[str]:
    return page.eval_on_selector_all(
        ".card", "cards => cards.sort((a, b) => a.ariaPosInSet - b.ariaPosInSet).map(c => c.querySelector('.path').textContent)"
    )


def wait_for_count(page, text):
    """Wait until the page, which draws what has been typed a moment later, shows this count."""
    page.wait_for_function("text => document.querySelector('#count').textContent === text", arg=text, timeout=10_000)


def selected(page) -> str:
    return page.locator(".card[aria-selected=true] .path").text_content()


def test_images_are_counted_sorted_and_filtered(tmp_path, visit):
    rows = ordinary_rows(30)
    page = visit(write(tmp_path / "g.html", rows))
    assert page.title() == "A title" and page.locator("#count").text_content() == "30 images"
    by_certainty = [path for path, *_ in sorted(rows, key=lambda row: -row[2][0])]
    assert paths(page) == by_certainty[: len(paths(page))]
    page.select_option("#order", "path")
    assert paths(page)[:3] == ["photos/img_0.jpg", "photos/img_1.jpg", "photos/img_2.jpg"]
    page.select_option("#order", "name")
    assert page.locator("#card0 .names li").first.text_content().startswith("bird")

    page.fill("#filter", "DOG")
    assert page.locator("#count").text_content() == "10 of 30 images" and len(paths(page)) == 10
    page.fill("#filter", "unicorn")
    assert paths(page) == [] and page.locator("#none").text_content() == "No image matches."
    page.fill("#filter", "")
    page.select_option("#only", label="cat (10)")
    wait_for_count(page, "10 of 30 images")


def test_images_are_drawn_at_random_to_check_and_those_worth_a_label_come_first_on_request(tmp_path, visit):
    path, rows, seen = tmp_path / "g.html", ordinary_rows(30), {4: "bird", 7: "cat", 9: "cat"}  # img_9 is a cat: they agree
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write(page_head({"title": "A title", "order": "random", "seed": 1}))
        for i, (image, names, probabilities) in enumerate(rows):
            extras = {"teacher": seen[i]} if i in seen else None
            file.write(row_line(image, list(zip(names, probabilities, strict=True)), data_url(thumbnail(picture(i))), extras))
        file.write(page_tail({}))
    page = visit(path)
    assert page.input_value("#order") == "random"
    drawn, places = paths(page), [path for path, *_ in rows]
    by_certainty = [path for path, *_ in sorted(rows, key=lambda row: -row[2][0])]
    assert drawn not in (places[: len(drawn)], by_certainty[: len(drawn)]) and drawn == paths(visit(path))
    page.select_option("#order", "next")
    first = paths(page)
    sure = {path: p[0] for path, _, p in rows}
    assert set(first[:2]) == {"photos/img_4.jpg", "photos/img_7.jpg"} and sure[first[0]] < sure[first[1]]
    assert first[2:] == [p for p in reversed(by_certainty) if p not in first[:2]][: len(first) - 2]
    page.click("#card0")
    assert page.locator("#note").text_content() == f"The teacher sees: {seen[int(re.search('[0-9]+', first[0])[0])]}"


def test_the_keyboard_does_everything(tmp_path, visit):
    rows = ordinary_rows(30)
    order = [path for path, *_ in sorted(rows, key=lambda row: -row[2][0])]
    page = visit(write(tmp_path / "g.html", rows))
    columns = page.evaluate("grid.columns")
    assert selected(page) == order[0]
    for key, index in (("ArrowRight", 1), ("ArrowDown", 1 + columns), ("ArrowLeft", columns), ("ArrowUp", 0), ("End", 29)):
        page.keyboard.press(key)
        assert selected(page) == order[index], key
    page.keyboard.press("Home")
    page.keyboard.press("Enter")
    assert page.locator("dialog[open] #heading").text_content() == order[0]
    page.keyboard.press("ArrowRight")
    assert page.locator("#heading").text_content() == order[1] and page.locator("#place").text_content() == "2 of 30"
    assert [
        line.split("cat")[-1].split("dog")[-1].split("bird")[-1] for line in page.locator("#all li").all_text_contents()
    ] == [f"{100 * p:.1f}%" for p in next(row[2] for row in rows if row[0] == order[1])]
    page.keyboard.press("Escape")
    assert page.locator("dialog[open]").count() == 0 and selected(page) == order[1]
    page.keyboard.press("Enter")
    page.evaluate("() => { viewer.dialog.close(); filter.focus(); }")  # as by Escape and / in quick succession
    page.wait_for_timeout(100)
    assert page.evaluate("document.activeElement === filter"), "what is typed must not mark pictures"
    page.keyboard.press("Escape")
    page.keyboard.press("/")
    page.keyboard.type("dog")
    wait_for_count(page, "10 of 30 images")
    page.keyboard.press("Escape")
    wait_for_count(page, "30 images")
    page.keyboard.press("Escape")
    page.keyboard.press("ArrowRight")
    assert selected(page) == order[1]


def test_hostile_names_are_shown_and_never_run(tmp_path, visit):
    rows = [(f"{n}/{i}", [n, "other"], [0.9 - i / 100, 0.1]) for i, n in enumerate(HOSTILE)]
    page = visit(write(tmp_path / "g.html", rows))
    assert paths(page) == [path for path, *_ in rows]
    assert sorted(page.eval_on_selector_all("#only option", "all => all.map(o => o.value.slice(1))")) == sorted(["", *HOSTILE])
    for _, names, _ in rows:
        page.keyboard.press("Enter")
        assert page.locator("#all li bdi").first.text_content() == names[0]
        page.keyboard.press("Escape")
        page.keyboard.press("ArrowRight")
    assert page.title() == "A title"
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_the_policy_stops_what_got_into_the_page_all_the_same(tmp_path, visit):
    page = visit(write(tmp_path / "g.html", ordinary_rows(1)))
    markup = "<img src='http://127.0.0.1:9/x' onerror='document.title=1'><b id=b onclick='document.title=2'>x</b>"
    page.evaluate("markup => document.body.insertAdjacentHTML('beforeend', markup)", markup)
    page.evaluate("document.getElementById('b').click(); fetch('http://127.0.0.1:9/y').catch(() => {})")
    page.wait_for_timeout(100)
    assert page.title() == "A title"
    assert len(visit.complaints) >= 3
    assert all("Content Security Policy" in c or c.endswith("violates: csp") for c in visit.complaints)
    visit.complaints.clear()


# ------------------------------------------------------------------------------------- from kdpl predict, check and correct


@pytest.fixture
def predicted(tmp_path, monkeypatch):
    """A function that predicts photos and gives the page; `inside` is the number of images whose thumbnails are in it."""

    def predict(inside=2000):
        prompts, photos = untrained_bundle(tmp_path / "out", "CoOp", ["cat", 'dog, "small"', "bird"]), tmp_path / "my photos"
        for i in range(6):
            image_file(photos / f"ä #{i}?.png", 300, seed=i)
        (photos / "<b>broken.jpg").write_bytes(b"no")
        monkeypatch.setattr("kdpl.classifier.gallery.INSIDE", inside)
        outputs = ["--html", str(tmp_path / "g.html"), "--csv", str(tmp_path / "g.csv")]
        assert main([str(prompts), str(photos), *outputs, "--quiet"]) == 5
        return tmp_path / "g.html"

    return predict


@pytest.mark.parametrize("inside", [2000, 3])
def test_enter_shows_the_full_picture_and_what_was_not_read(inside, predicted, browser, tmp_path):
    page = browser.new_page()
    page.goto(predicted(inside).as_uri())
    page.wait_for_selector(".card")
    page.wait_for_function("() => [...document.querySelectorAll('.card img')].every(i => i.naturalWidth === 192)")
    assert (tmp_path / "g_files").exists() == (inside == 3)
    page.select_option("#order", "path")
    page.focus("#grid")
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.getElementById('picture').naturalWidth === 300")
    page.keyboard.press("Escape")
    assert page.locator("#missing").text_content() == "1 not read"
    page.click("#missing")
    assert "<b>broken.jpg' cannot be read as an image" in page.locator("#list").text_content()
    page.click("#shut")
    (tmp_path / "my photos").rename(tmp_path / "moved")
    page.reload()
    page.wait_for_selector(".card")
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.getElementById('picture').naturalWidth === 192")  # the thumbnail stands in
    page.close()


def test_predictions_are_checked_by_keyboard_and_saved(predicted, browser, tmp_path):
    page = browser.new_page()
    uri = predicted().as_uri()
    page.goto(uri)
    page.wait_for_selector(".card")
    page.select_option("#order", "path")
    page.focus("#grid")
    expected = {row["path"]: row["name"] for row in csv.DictReader((tmp_path / "g.csv").open(encoding="utf-8", newline=""))}
    order = paths(page)
    page.keyboard.press("y")
    page.keyboard.press("n")
    page.keyboard.press("c")
    right = next(name for name in ("cat", 'dog, "small"', "bird") if name != expected[order[2]])
    page.keyboard.type("whale")
    page.keyboard.press("Enter")  # not one of the names: nothing happens
    page.fill("#name", right)
    page.keyboard.press("Enter")
    page.keyboard.press("y")  # beside the full picture
    page.keyboard.press("Escape")
    page.keyboard.press("y")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("u")
    assert page.locator("#save").text_content() == "Save labels.csv (4)"
    page.reload()
    page.wait_for_selector(".card")
    page.select_option("#show", "wrong")
    wait_for_count(page, "2 of 6 images")
    with page.expect_download() as download:
        page.click("#save")
    assert download.value.suggested_filename == "labels.csv"
    download.value.save_as(tmp_path / "labels.csv")
    rows = list(csv.DictReader((tmp_path / "labels.csv").open(encoding="utf-8", newline="")))
    found = {row["path"]: (row["label"], row["right"], row["predicted"]) for row in rows}
    assert found == {
        order[0]: (expected[order[0]], "yes", expected[order[0]]),
        order[1]: ("", "no", expected[order[1]]),
        order[2]: (right, "no", expected[order[2]]),
        order[3]: (expected[order[3]], "yes", expected[order[3]]),
    }
    page.close()


def test_a_hundred_thousand_images_are_shown(tmp_path, browser):
    (tmp_path / "t.webp").write_bytes(thumbnail(picture(0)))
    count = 100_000
    with (tmp_path / "g.html").open("w", encoding="utf-8") as file:
        file.write(page_head({"title": "Many", "names": ["cat"]}))
        for i in range(count):
            pairs = [(f"name {(i + k) % 400}", (1 - i / count) / (k + 1)) for k in range(5)]
            file.write(row_line(f"a folder of photos/deep/below/IMG_{i:06d}.jpg", pairs, "t.webp", {"full": "t.webp"}))
        file.write(page_tail({f"{i}.jpg": "it is empty" for i in range(2000)}))
    page = browser.new_page()
    page.set_default_timeout(60_000)
    page.goto((tmp_path / "g.html").as_uri())
    page.wait_for_selector(".card")
    assert page.locator("#count").text_content() == "100,000 images" and len(paths(page)) < 80
    page.keyboard.press("End")
    assert selected(page).endswith("IMG_099999.jpg")
    page.fill("#filter", "name 7")
    wait_for_count(page, "2,750 of 100,000 images")
    page.close()
