"""Take the screenshots of the pages in a headless Chromium: `python tools/screenshots.py docs/figures`.

The gallery is that of `kdpl fit --demo` and `kdpl predict`; the report is that of the runs below `--runs`, such as the
quickstart's. Needs `pip install -e '.[browser]'` and Chromium (`apt-get install chromium`).
"""

import argparse
import contextlib
import html
import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

from kdpl.__main__ import main as kdpl

LARGEST = 100_000  # bytes of a picture
COLOURS = 96
SIZE = {"width": 1000, "height": 560}
STYLE = "body{margin:0;font:15px ui-monospace,monospace;background:#fff;color:#1f2328}pre{margin:0;padding:16px}"


def gallery(work: Path) -> Path:
    """Write the gallery of the demo and return its path."""
    out, page = work / "OUT", work / "predictions.html"
    for command in (
        ["fit", "--demo", "--quick", "-o", str(out)],
        ["predict", str(out / "prompts"), str(out / "new_photos"), "--html", str(page), "--quiet"],
    ):
        if status := kdpl(command):
            raise SystemExit(status)
    return page


def report(work: Path, runs: str) -> Path:
    """Write what `kdpl report` prints as a page and return its path."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        if status := kdpl(["report", runs]):
            raise SystemExit(status)
    page = work / "report.html"
    text = f"$ kdpl report output\n\n{printed.getvalue()}"
    page.write_text(f"<meta charset=utf-8><style>{STYLE}</style><pre>{html.escape(text)}</pre>", encoding="utf-8")
    return page


def take(browser: Browser, page: Path, path: Path, fit: str = "") -> None:
    """Write a screenshot of a page, or of the element `fit` in it.

    Raises:
        ValueError: the picture is larger than LARGEST.
    """
    tab = browser.new_page(viewport=SIZE, color_scheme="light")
    tab.goto(page.resolve().as_uri())
    tab.wait_for_timeout(500)  # thumbnails are decoded
    data = tab.locator(fit).screenshot() if fit else tab.screenshot()
    tab.close()
    small = io.BytesIO()
    Image.open(io.BytesIO(data)).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(small, "PNG", optimize=True)
    if len(small.getvalue()) > LARGEST:
        raise ValueError(f"{path.name} would have {len(small.getvalue()):,} bytes, more than {LARGEST:,}: make SIZE smaller.")
    path.write_bytes(small.getvalue())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where to write gallery.png and report.png")
    parser.add_argument("--runs", default="output/quickstart", help="folder of the runs in the report (default: %(default)s)")
    parser.add_argument("--work", type=Path, default="output/screenshots", help="folder of the demo (default: %(default)s)")
    args = parser.parse_args()
    installed = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    args.work.mkdir(parents=True, exist_ok=True)
    pages = {"gallery.png": (gallery(args.work), ""), "report.png": (report(args.work, args.runs), "pre")}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=installed, args=["--no-sandbox"])
        for name, (page, fit) in pages.items():
            take(browser, page, args.folder / name, fit)
        browser.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
