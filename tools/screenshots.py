"""Take the screenshots of the pages in a headless Chromium, light and dark: `python tools/screenshots.py docs/figures`.

The gallery is that of `kdpl fit --demo` and `kdpl predict`. The report is `report.txt` of the folder; with `--runs RUNS`
it is first written again, from runs such as the quickstart's. `screenshots.json` has digests of these pages, by which
tests/test_site.py finds that a page has changed. Needs `pip install -e '.[browser]'` and Chromium (`apt-get install chromium`).
"""

import argparse
import contextlib
import hashlib
import html
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from kdpl.__main__ import main as kdpl

if TYPE_CHECKING:
    from playwright.sync_api import Browser

ROOT = Path(__file__).resolve().parent.parent
PARTS = [ROOT / "kdpl/classifier/gallery" / name for name in ("parts.css", "parts.js")]
GALLERY = [*PARTS, ROOT / "kdpl/classifier/gallery/page.html"]
APP = [*PARTS, *(ROOT / "kdpl/app/page" / name for name in ("index.html", "app.css", "app.js"))]
LARGEST = 60_000  # bytes of a picture
COLOURS = 96
SIZE = {"width": 1000, "height": 560}
THEMES = ("light", "dark")
STYLE = (
    "body{margin:0;font:15px ui-monospace,monospace;background:#fff;color:#1f2328}pre{margin:0;padding:16px}"
    "@media(prefers-color-scheme:dark){body{background:#1e2229;color:#e7eaf0}}"
)


def gallery() -> Path:
    """Write the gallery of the demo into the working directory and return its path."""
    for command in (
        ["fit", "--demo", "--quick", "-o", "OUT"],
        ["predict", "OUT/prompts", "OUT/new_photos", "--html", "predictions.html", "--quiet"],
    ):
        if status := kdpl(command):
            raise SystemExit(status)
    return Path("predictions.html")


@contextlib.contextmanager
def opened() -> Iterator[str]:
    """Serve the photos of the demo by `kdpl open` and give the address, once all are sorted."""
    command = [
        sys.executable,
        "-u",
        "-m",
        "kdpl",
        "open",
        "OUT/photos",
        "OUT/names.txt",
        "-o",
        "OPENED",
        "--no-browser",
        "--quiet",
    ]
    flags = ["--student", "emoji_student", "--teacher", "emoji_teacher"]
    with subprocess.Popen([*command, *flags], stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


def report(runs: str) -> str:
    """Return what `kdpl report` prints about the runs below a folder."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        if status := kdpl(["report", runs]):
            raise SystemExit(status)
    return printed.getvalue()


def report_page(printed: str) -> str:
    """Return a report as a page that looks like a terminal."""
    text = f"$ kdpl report output/quickstart\n\n{printed}"
    return f"<meta charset=utf-8><style>{STYLE}</style><pre>{html.escape(text)}</pre>"


def digests(folder: Path) -> dict[str, str]:
    """Return a digest of each page that is photographed; the gallery's is of the file that it is made from."""
    pages = {
        "gallery": "".join(file.read_text(encoding="utf-8") for file in GALLERY),
        "open": "".join(file.read_text(encoding="utf-8") for file in APP),
        "report": report_page((folder / "report.txt").read_text(encoding="utf-8")),
    }
    return {name: hashlib.sha256(text.encode()).hexdigest() for name, text in pages.items()}


def take(browser: "Browser", address: str, path: Path, theme: str, fit: str = "", wait: str = "body") -> None:
    """Write a screenshot of a page, or of the element `fit` in it.

    Raises:
        ValueError: the picture is larger than LARGEST.
    """
    tab = browser.new_page(viewport=SIZE, color_scheme=theme)
    tab.goto(address)
    tab.locator(wait).first.wait_for(state="attached", timeout=300_000)
    tab.wait_for_timeout(1500)  # thumbnails are decoded
    data = tab.locator(fit).screenshot() if fit else tab.screenshot()
    tab.close()
    small = io.BytesIO()
    Image.open(io.BytesIO(data)).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(small, "PNG", optimize=True)
    if len(small.getvalue()) > LARGEST:
        raise ValueError(f"{path.name} would have {len(small.getvalue()):,} bytes, more than {LARGEST:,}: make SIZE smaller.")
    path.write_bytes(small.getvalue())


def main() -> int:
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where to write gallery-light.png and the others")
    parser.add_argument("--runs", help="write the report again, from the runs in this folder, such as output/quickstart")
    parser.add_argument("--work", type=Path, default="output/screenshots", help="folder of the demo (default: %(default)s)")
    args = parser.parse_args()
    installed = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    folder, text = args.folder.resolve(), args.folder.resolve() / "report.txt"
    if args.runs:
        text.write_text(report(args.runs), encoding="utf-8")
    args.work.mkdir(parents=True, exist_ok=True)
    os.chdir(args.work)  # the paths in the gallery are short
    Path("report.html").write_text(report_page(text.read_text(encoding="utf-8")), encoding="utf-8")
    pages = {
        name: (page.resolve().as_uri(), fit)
        for name, page, fit in (("gallery", gallery(), ""), ("report", Path("report.html"), "pre"))
    }
    with sync_playwright() as playwright, opened() as address:
        browser = playwright.chromium.launch(executable_path=installed, args=["--no-sandbox"])
        for theme in THEMES:
            for name, (page, fit) in pages.items():
                take(browser, page, folder / f"{name}-{theme}.png", theme, fit)
            take(browser, address, folder / f"open-{theme}.png", theme, wait="#progress[hidden] ~ #verdict:not(:empty)")
        browser.close()
    (folder / "screenshots.json").write_text(json.dumps(digests(folder), indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
