"""The gallery in a real browser: what it shows, how it is used, and that no name can make it do anything else."""

import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from kdpl.classifier.gallery import THUMBNAIL, thumbnail, write_gallery

HOSTILE = [
    "<img src=x onerror=\"document.title='owned'\">",
    "</script><script>document.title='owned'</script>",
    "<!--<script>",
    "]]>\u2028\u2029&lt;b&gt;",
    "\"'`${document.title='owned'}",
    "שלום \u202egnp.exe",
    "javascript:alert(1)",
    "__proto__",
    "x" * 300,
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


def write(path, rows):
    with write_gallery(path, "A title") as add:
        for i, row in enumerate(rows):
            add(*row, thumbnail(picture(i)))
    return path


def data_lines(html: str) -> list[str]:
    return re.search(r'<script type="application/json" id="data">\n(.*?)\n</script>', html, re.S)[1].splitlines()


def test_every_image_is_a_line_of_data_with_its_names_and_a_thumbnail(tmp_path):
    rows = ordinary_rows(7)
    head, *lines = data_lines(write(tmp_path / "g.html", rows).read_text("utf-8"))
    assert json.loads(head) == {"title": "A title"}
    read = [json.loads(line) for line in lines]
    assert [(path, [n for n, _ in pairs]) for path, pairs, _ in read] == [(path, names) for path, names, _ in rows]
    assert all(image.startswith("data:image/webp;base64,") for *_, image in read)


def test_hostile_names_are_data_and_nothing_else(tmp_path):
    html = write(tmp_path / "g.html", [(n, [n, "other"], [0.9, 0.1]) for n in HOSTILE]).read_text("utf-8")
    lines = data_lines(html)[1:]
    assert [json.loads(line)[0] for line in lines] == HOSTILE
    assert not any(set(line) & set("<>&") or not line.isascii() for line in lines)


def test_thumbnails_keep_their_shape_and_small_images_their_size():
    import io

    for size, expected in (((1000, 500), (THUMBNAIL, THUMBNAIL // 2)), ((20, 30), (20, 30))):
        image = picture(0, size)
        assert Image.open(io.BytesIO(thumbnail(image))).size == expected
        assert image.size == size


def test_a_gallery_that_fails_leaves_the_previous_one(tmp_path):
    path = write(tmp_path / "g.html", ordinary_rows(2))
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"'a\.jpg' has no name"), write_gallery(path) as add:
        add("b.jpg", ["cat"], [1.0], thumbnail(picture(0)))
        add("a.jpg", [], [], thumbnail(picture(0)))
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


# ------------------------------------------------------------------------------------------------------------ a browser


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    installed = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
    with playwright.sync_playwright() as p:
        try:
            browser = p.chromium.launch(executable_path=installed, args=["--no-sandbox"])
        except playwright.Error as error:
            pytest.skip(f"no Chromium to run: {str(error).splitlines()[0]}")
        yield browser
        browser.close()


@pytest.fixture
def visit(browser):
    """Return a function that opens a file and gives the page; afterwards nothing may have been asked for, said or broken."""
    context = browser.new_context(viewport={"width": 900, "height": 700})
    requests, complaints = [], []

    def visit(path):
        page = context.new_page()
        page.on("requestfinished", lambda r: requests.append(r.url) if not r.url.startswith("data:") else None)
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


def selected(page) -> str:
    return page.locator(".card[aria-selected=true] .path").text_content()


def test_images_are_counted_sorted_and_filtered(tmp_path, visit):
    rows = ordinary_rows(30)
    page = visit(write(tmp_path / "g.html", rows))
    assert page.title() == "A title" and page.locator("#count").text_content() == "30 images"
    by_certainty = [path for path, *_ in sorted(rows, key=lambda row: -row[2][0])]
    assert paths(page) == by_certainty[: len(paths(page))]
    page.select_option("#order", "unsure")
    assert paths(page)[0] == by_certainty[-1]
    page.select_option("#order", "path")
    assert paths(page)[:3] == ["photos/img_0.jpg", "photos/img_1.jpg", "photos/img_2.jpg"]
    page.select_option("#order", "name")
    assert page.locator("#card0 .names li").first.text_content().startswith("bird")

    page.fill("#filter", "DOG")
    assert page.locator("#count").text_content() == "10 of 30 images" and len(paths(page)) == 10
    page.fill("#filter", "img_29")
    assert paths(page) == ["photos/img_29.jpg"]
    page.fill("#filter", "unicorn")
    assert paths(page) == [] and page.locator("#none").text_content() == "No image matches."
    page.fill("#filter", "")
    page.click(".chip:has-text('cat')")
    page.click(".chip:has-text('bird')")
    assert page.locator("#count").text_content() == "20 of 30 images"
    page.click(".chip:has-text('bird')")
    assert page.locator("#count").text_content() == "10 of 30 images"


def test_the_keyboard_does_everything(tmp_path, visit):
    rows = ordinary_rows(30)
    order = [path for path, *_ in sorted(rows, key=lambda row: -row[2][0])]
    page = visit(write(tmp_path / "g.html", rows))
    columns = page.evaluate("columns")
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
    page.keyboard.press("/")
    page.keyboard.type("dog")
    assert page.locator("#count").text_content() == "10 of 30 images"
    page.keyboard.press("Escape")
    assert page.locator("#count").text_content() == "30 images"
    page.keyboard.press("Escape")
    page.keyboard.press("ArrowRight")
    assert selected(page) == order[1]


def test_hostile_names_are_shown_and_never_run(tmp_path, visit):
    rows = [(f"{n}/{i}", [n, "other"], [0.9 - i / 100, 0.1]) for i, n in enumerate(HOSTILE)]
    page = visit(write(tmp_path / "g.html", rows))
    assert paths(page) == [path for path, *_ in rows]
    assert sorted(page.eval_on_selector_all(".chip bdi", "all => all.map(b => b.textContent)")) == sorted(HOSTILE)
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


@pytest.mark.slow
def test_thousands_of_images_are_as_quick_as_a_few(tmp_path, visit):
    rows = [(f"{i}.png", [f"name {i % 400}"], [1 - i / 10000]) for i in range(5000)]
    small = thumbnail(picture(0))
    with write_gallery(tmp_path / "g.html") as add:
        for row in rows:
            add(*row, small)
    page = visit(tmp_path / "g.html")
    assert page.locator("#count").text_content() == "5,000 images" and 0 < len(paths(page)) < 60
    page.keyboard.press("End")
    assert selected(page) == "4999.png" and len(paths(page)) < 60
    assert page.locator("#card4999").is_visible()


@pytest.mark.slow
def test_a_gallery_of_nothing_says_so(tmp_path, visit):
    page = visit(write(tmp_path / "g.html", []))
    assert page.locator("#none").text_content() == "There is no image."
    page.keyboard.press("Enter")
    assert page.locator("dialog[open]").count() == 0
