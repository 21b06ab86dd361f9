"""How long the page of `kdpl open` takes in a real Chromium: `python benchmarks/open_page.py [--photos 10000] [--names 100]`.

The photos are links to a few tiny pictures and their features are made, in clusters around names, so that no tower looks at
anything. A change takes from the key or click until the page is sorted again and drawn.
"""

import argparse
import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from playwright.sync_api import sync_playwright

from kdpl.common.outputs import FIT, take_folder
from kdpl.photos.pile import Pile, Words, begin_pile, read_pile, vocabulary_for
from kdpl.text.vocabulary import load_vocabulary

PICTURES = 50  # different ones: a file system allows some ten thousand links to a file
NOISE = 0.6  # of a photo's feature around that of its name


def make(root: Path, count: int, names: int) -> list[str]:
    """Write photos, and the folder of `kdpl open` that knows them all; return the names."""
    photos, out, generator = root / "photos", root / "out", torch.Generator().manual_seed(1)
    photos.mkdir()
    for i in range(PICTURES):
        Image.new("RGB", (48, 48), (5 * i, 255 - 5 * i, 120)).save(root / f"{i}.png")
    words = Words("emoji_student", "emoji_teacher", "a photo of a {}.")
    chosen = [name for name in load_vocabulary(vocabulary_for("emoji_student")) if name.isascii()][: names + 1]
    of = torch.arange(count) % names

    def around(texts: torch.Tensor) -> torch.Tensor:
        noise = F.normalize(torch.randn(count, texts.shape[1], generator=generator), dim=-1)
        return F.normalize(texts[of].float() + NOISE * noise, dim=-1).half()

    paths = [f"{i // 1000:03d}/IMG_{i:06d}.png" for i in range(count)]
    for i, path in enumerate(paths):
        (photos / path).parent.mkdir(exist_ok=True)
        os.link(root / f"{i % PICTURES}.png", photos / path)
    stamps = [[s.st_size, s.st_mtime_ns] for s in (os.stat(photos / path) for path in paths)]
    none = begin_pile(read_pile(photos), words, photos)
    features = around(words.of_student(chosen, words.template)), around(words.of_teacher(chosen))
    contents = [f"{i:032x}" for i in range(count)]
    take_folder(out, FIT)
    texts = none.student_background, none.teacher_background
    Pile(none.facts, paths, contents, stamps, none.background, *features, *texts).write(out)
    (out / "names.txt").write_text("\n".join(chosen[:names]) + "\n", encoding="utf-8")
    return chosen


@contextlib.contextmanager
def opened(out: Path):
    """Run `kdpl open`; give its address and process."""
    command = [sys.executable, "-u", "-m", "kdpl", "open", str(out), "--no-browser", "--quiet"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process.stdout.readline().strip(), process
        finally:
            process.terminate()


SCROLL = """async () => {
  const grid = document.getElementById("grid"), gaps = [], step = grid.clientHeight / 8;
  let last = await new Promise(requestAnimationFrame);
  for (let i = 0; i < 300; i++) {
    grid.scrollTop += step;
    const now = await new Promise(requestAnimationFrame);
    gaps.push(now - last);
    last = now;
  }
  return gaps.sort((a, b) => a - b);
}"""
SORTED = "n => document.querySelector('#progress').hidden && document.querySelectorAll('#names li').length === n"
CALM = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"


def measure(page, names: list[str]) -> dict[str, list[float]]:
    """Return the seconds of each kind of change, twice or more, as the page is used."""
    took: dict[str, list[float]] = {}

    def timed(what: str, undone: str, act, *args: str) -> None:
        start = time.perf_counter()
        act(*args)
        page.locator("#undo", has_text=undone).wait_for()
        page.evaluate(CALM)
        took.setdefault(what, []).append(time.perf_counter() - start)

    def dialog(name: str, button: str, text: str = "") -> None:
        page.click(f"[aria-label='Rename, merge or delete {name}']")
        if text:
            page.fill("#renamed", text)
        page.click(f"#rename button[value={button}]")

    for turn in range(3):
        first, second, third = names[5 + 3 * turn : 8 + 3 * turn]
        timed("rename", f"Undo: rename {first}", dialog, first, "yes", f"{first} {turn}")
        timed("merge", f"Undo: merge {second}", dialog, second, "merge", third)
        timed("delete", f"Undo: delete {third}", dialog, third, "delete")
        page.fill("#new", f"{names[-1]} {turn}" if turn else names[-1])
        timed("add", f"Undo: add {names[-1]}", page.press, "#new", "Enter")
        page.locator(".card .path").nth(turn).click()
        for _ in range(49):
            page.keyboard.press("Shift+ArrowRight")
        timed("label 50 photos", "Undo: label 50 photos", page.keyboard.press, "2")
        timed("undo", "Undo: add", page.keyboard.press, "u")
    return took


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=int, default=10_000)
    parser.add_argument("--names", type=int, default=100)
    args = parser.parse_args()
    installed = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        names = make(Path(folder), args.photos, args.names)
        browser = playwright.chromium.launch(executable_path=installed, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1600, "height": 900})
        page.set_default_timeout(600_000)
        start = time.perf_counter()
        with opened(Path(folder, "out")) as (address, process):
            page.goto(address)
            page.locator(".card").first.wait_for()
            print(f"{args.photos:,} photos, {args.names} names, load {os.getloadavg()[0]:.1f}")
            print(f"first photo on the page  {time.perf_counter() - start:6.2f} s")
            page.wait_for_function(SORTED, arg=args.names + 1)
            print(f"all sorted               {time.perf_counter() - start:6.2f} s")
            for what, seconds in measure(page, names).items():
                print(f"{what:24} {statistics.median(seconds):6.2f} s, at most {max(seconds):.2f}")
            gaps = page.evaluate(SCROLL)
            usual, most = gaps[len(gaps) // 2], gaps[len(gaps) * 95 // 100]
            print(f"scroll                   {usual:6.1f} ms a frame, 95 % below {most:.1f}, at most {gaps[-1]:.1f}")
            status = Path(f"/proc/{process.pid}/status").read_text()
            peak = int(status.partition("VmHWM:")[2].split()[0]) / 1e6
            heap = page.evaluate("performance.memory.usedJSHeapSize") / 1e6
            print(f"memory of the server     {peak:6.2f} GB at most; the page's objects {heap:.0f} MB")
        browser.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
