"""Draw the figures of the README and of the pages, each for light and for dark pages: `python docs/figures/draw.py`.

Plain SVG, so that the same code draws the same bytes everywhere; a test compares them with the committed files. The chart of
results is drawn from `quickstart.txt`, the output of `bash scripts/quickstart.sh`, that of the claims from
`benchmarks/emoji/claims.csv`, which `python benchmarks/emoji/run.py` writes.
"""

import argparse
import csv
import math
import re
import sys
from collections.abc import Callable
from html import escape
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
import photos_chart  # noqa: E402

PALETTES = {
    "light": {
        "text": "#1f2328", "muted": "#57606a", "panel": "#f6f8fa", "line": "#afb8c1", "box": "#dfe7ef", "learned": "#ffd8b0",
        "learned_line": "#bc5b00", "accent": "#0969da", "second": "#8fb8e8", "empty": "none",
    },
    "dark": {
        "text": "#f0f6fc", "muted": "#b1bac4", "panel": "#161b22", "line": "#6e7681", "box": "#30363d", "learned": "#693e00",
        "learned_line": "#f0a04b", "accent": "#58a6ff", "second": "#2f5d94", "empty": "none",
    },
}  # fmt: skip
NAMES = ["hot dog", "banana", "pot of food", "cheese wedge"]  # of the figure of the text pass
N_CTX = 4


class Drawing:
    """An SVG picture in the colours of a palette; lengths are pixels, and y goes down."""

    def __init__(self, width: int, height: int, title: str, palette: dict[str, str]):
        self.palette, self.parts = palette, []
        self.head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
            'font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif" font-size="15">\n'
            f"<title>{escape(title)}</title>\n"
            '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
            f'<path d="M0 0L8 4L0 8z" fill="{palette["muted"]}"/></marker>'
            '<marker id="back" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
            f'<path d="M0 0L8 4L0 8z" fill="{palette["learned_line"]}"/></marker></defs>\n'
        )

    def rect(self, x: float, y: float, w: float, h: float, fill: str, line: str = "line", radius: int = 5) -> None:
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="{radius}" '
            f'fill="{self.palette[fill]}" stroke="{self.palette[line]}"/>'
        )

    def text(self, x: float, y: float, words: str, colour: str = "text", anchor: str = "middle", extra: str = "") -> None:
        style = f'fill="{self.palette[colour]}" text-anchor="{anchor}"{extra}'
        self.parts.append(f'<text x="{x:g}" y="{y:g}" {style}>{escape(words)}</text>')

    def box(self, x: float, y: float, w: float, h: float, words: str, fill: str = "box", line: str = "line") -> None:
        """Draw a rectangle with words in its middle."""
        self.rect(x, y, w, h, fill, line)
        self.text(x + w / 2, y + h / 2 + 5, words)

    def arrow(self, path: str, back: bool = False) -> None:
        """Draw a line with a head at its end; `back` is for gradients."""
        colour, head, dash = ("learned_line", "back", ' stroke-dasharray="6 4"') if back else ("muted", "head", "")
        self.parts.append(
            f'<path d="{path}" fill="none" stroke="{self.palette[colour]}" stroke-width="1.6"{dash} marker-end="url(#{head})"/>'
        )

    def line(self, points: list[tuple[float, float]], colour: str, dash: str = "") -> None:
        """Draw a line through points."""
        path = "M" + "L".join(f"{x:.4g} {y:.4g}" for x, y in points)
        style = f'stroke="{self.palette[colour]}" stroke-width="1.8"' + (f' stroke-dasharray="{dash}"' if dash else "")
        self.parts.append(f'<path d="{path}" fill="none" {style}/>')

    def diamond(self, x: float, y: float, radius: float, colour: str) -> None:
        path = f"M{x:g} {y - radius:g}L{x + radius:g} {y:g}L{x:g} {y + radius:g}L{x - radius:g} {y:g}z"
        fill, line = self.palette["panel"], self.palette[colour]
        self.parts.append(f'<path d="{path}" fill="{fill}" stroke="{line}" stroke-width="1.8"/>')

    def svg(self) -> str:
        return self.head + "\n".join(self.parts) + "\n</svg>\n"


BOLD = ' font-weight="600"'
SMALL = ' font-size="13"'


def method(palette: dict[str, str]) -> str:
    """The method: images without labels go through both CLIPs, and only the student's prompt learns."""
    d = Drawing(960, 430, "KDPL: a frozen teacher's distribution over class names trains the prompt of a small CLIP", palette)
    for i in range(3):
        d.rect(30 + 14 * i, 160 + 14 * i, 80, 80, "box")
    d.text(98, 233, "images", extra=BOLD)
    d.text(82, 292, "no labels", "muted")
    rows = (
        (20, "Teacher: a large CLIP, frozen", [("a photo of a", "box", 104), ("cat", "box", 44), (".", "box", 22)]),
        (
            220,
            "Student: a small CLIP, frozen",
            [*((f"v{i}", "learned", 23) for i in "₁₂₃₄"), ("cat", "box", 44), (".", "box", 22)],
        ),
    )
    for top, title, tokens in rows:
        d.rect(180, top, 400, 160, "panel", radius=8)
        d.text(195, top + 25, title, anchor="start", extra=BOLD)
        d.box(440, top + 45, 120, 42, "image tower")
        d.box(440, top + 100, 120, 42, "text tower")
        middle = 240 if top == 220 else 160
        d.arrow(f"M142 {middle} H160 V{top + 66} H436")
        x = 200
        for words, kind, width in tokens:
            d.box(x, top + 106, width, 30, words, kind, "learned_line" if kind == "learned" else "line")
            x += width + 5
        d.arrow(f"M{x} {top + 121} H436")
        d.arrow(f"M560 {top + 66} H596 V{top + 78} H612")
        d.arrow(f"M560 {top + 121} H596 V{top + 94} H612")
    for top, heights, colour in ((20, (12, 74, 20, 8, 5), "second"), (220, (28, 42, 34, 22, 16), "accent")):
        for i, height in enumerate(heights):
            d.rect(622 + 20 * i, top + 120 - height, 15, height, colour, colour, 2)
        d.text(669, top + 142, "T(name | image)" if top == 20 else "S(name | image)", extra=SMALL)
    d.box(772, 160, 170, 82, "", "panel")
    d.text(857, 188, "loss", extra=BOLD)
    d.text(857, 212, "½ KL(T ‖ S)", extra=SMALL)
    d.text(857, 230, "+ ½ KL(S ‖ T)", extra=SMALL)
    d.arrow("M728 100 H857 V156")
    d.arrow("M728 300 H830 V246")
    d.arrow("M884 242 V408 H250 V362", back=True)
    d.text(570, 401, "gradient: only the vectors v₁ to v₄ of the prompt learn", "learned_line")
    return d.svg()


def results(palette: dict[str, str]) -> str:
    """The accuracies of the quickstart: on new photos of one source, and the means on base and new classes."""
    output = (HERE / "quickstart.txt").read_text(encoding="utf-8")
    first, rows = quickstart_photos(output), quickstart_means(output)
    sets, seeds = (
        len(re.findall(r"^(?!mean|emoji_photos)\S+ +teacher .* {2,}\d+\.\d ", output, re.M)),
        re.search(r"over (seeds [\d, ]+);", output)[1],
    )
    below = 86 + 32 * len(first)
    d = Drawing(960, below + 80 + 58 * len(rows), "Accuracy on the embedded benchmark, by the quickstart", palette)
    title = f"New photos of the same source, names fixed: top-1 accuracy in percent, mean over {seeds}"
    d.text(10, 24, title, anchor="start", extra=BOLD)
    for i, (name, accuracy) in enumerate(first):
        _bars(d, 44 + 32 * i, name, [(accuracy, "learned_line" if name.startswith("KDPL") else "second")])
    title = f"Names that may change: base and new classes by an artist who was left out, mean over {sets} data sets"
    d.text(10, below, title, anchor="start", extra=BOLD)
    for x, colour, words in ((262, "accent", "base classes, learned on"), (480, "second", "new classes")):
        d.rect(x, below + 14, 15, 15, colour, colour, 2)
        d.text(x + 22, below + 27, words, anchor="start")
    for i, (name, base, new) in enumerate(rows):
        _bars(d, below + 48 + 58 * i, name, [(base, "accent"), (new, "second")])
    return d.svg()


def _bars(d: Drawing, y: float, name: str, bars: list[tuple[float, str]]) -> None:
    scale = 640 / 100
    d.text(
        250,
        y + 4 + 11 * len(bars) + (1 if len(bars) > 1 else 0),
        name,
        anchor="end",
        extra=BOLD if name.startswith("KDPL") else "",
    )
    for i, (value, colour) in enumerate(bars):
        d.rect(262, y + 22 * i, value * scale, 19, colour, colour, 2)
        d.text(270 + value * scale, y + 22 * i + 15, f"{value:.1f}", anchor="start")


PANELS = (  # of the figure of the claims: title, second line, and the pairs and images that it shows
    ("base classes", "minus best sentence", "minus best sentence", "base"),
    ("new classes", "minus zero-shot", "minus zero-shot", "new"),
    ("new classes", "minus labels", "minus {}", "new"),
    ("new, artist left out", "minus labels", "minus {}", "new, artist left out"),
    ("ten data sets", "minus labels", "minus {}", "ten targets"),
    ("four domains", "minus labels", "minus {}", "four domains"),
)


def claims(palette: dict[str, str]) -> str:
    """How far prompts learned without labels are above others, with 95 % intervals, by learner."""
    with open(HERE.parents[1] / "benchmarks/emoji/claims.csv", encoding="utf-8", newline="") as file:
        found = {(row["pair"], row["images"]): row for row in csv.DictReader(file)}
    panels = [panel for panel in PANELS if any(images == panel[3] for _, images in found)]
    pairs = [pair for (pair, _), row in found.items() if row["claim"] == "a"]
    learners = list(dict.fromkeys(pair.split()[0].removeprefix("KDPL_") for pair in pairs))
    cells = {
        (learner, n): found.get((f"KDPL_{learner} {pair.format(learner)}", images))
        for learner in learners
        for n, (_, _, pair, images) in enumerate(panels)
    }
    reach = max(abs(float(row[end])) for row in cells.values() if row for end in ("low", "high"))
    limit, left, width, top = math.ceil(reach), 120, 830 / len(panels), 92
    d = Drawing(960, top + 34 * len(learners) + 40, "Prompts learned without labels against sentences and labels", palette)
    d.text(10, 24, "Points by which KDPL's prompts are above, with 95 % intervals", anchor="start", extra=BOLD)
    bottom = top + 34 * len(learners)
    for n, (title, second, _, _) in enumerate(panels):
        middle = left + width * n + width / 2
        scale = (width / 2 - 10) / limit
        d.text(middle, 56, title)
        d.text(middle, 74, second, "muted", extra=SMALL)
        d.rect(middle - limit * scale, top - 8, 2 * limit * scale, bottom - top + 8, "panel", "panel")
        d.rect(middle - 0.5, top - 8, 1, bottom - top + 8, "line", "line", 0)
        for value in (-(limit // 2), 0, limit // 2):  # inside the panel, so that neighbours do not touch
            d.text(middle + value * scale, bottom + 20, f"{value:+d}" if value else "0", "muted", extra=SMALL)
        for i, learner in enumerate(learners):
            y = top + 34 * i + 14
            if (row := cells[learner, n]) is None:
                d.text(middle, y + 5, "not run", "muted", extra=SMALL)
                continue
            points, low, high = (float(row[key]) for key in ("points", "low", "high"))
            colour = {"shown": "accent", "denied": "learned_line"}.get(row["verdict"], "muted")
            d.rect(middle + low * scale, y - 1.5, max(1, (high - low) * scale), 3, colour, colour, 1)
            d.rect(middle + points * scale - 5, y - 5, 10, 10, colour, colour, 5)
    for i, learner in enumerate(learners):
        d.text(left - 12, top + 34 * i + 19, learner, anchor="end")
    return d.svg()


def quickstart_means(output: str) -> list[tuple[str, float, float]]:
    """Return method, base and new accuracy of the lines `mean` in the quickstart's output.

    Raises:
        ValueError: there is no such line.
    """
    lines = re.findall(r"^mean +(\S.*?) {2,}([\d.]+) +([\d.]+) ", output, re.M)
    if not lines:
        raise ValueError("quickstart.txt has no line that begins with 'mean': expected the output of scripts/quickstart.sh.")
    return [(name, float(base), float(new)) for name, base, new in lines]


def quickstart_photos(output: str) -> list[tuple[str, float]]:
    """Return method and accuracy of the lines about photos of one source in the quickstart's output.

    Raises:
        ValueError: there is no such line.
    """
    lines = re.findall(r"^emoji_photos\S+ +(\S.*?) {2,}([\d.]+) +\d+% ", output, re.M)
    if not lines:
        raise ValueError("quickstart.txt has no line of photos: expected the output of scripts/quickstart.sh.")
    return [(name, float(accuracy)) for name, accuracy in lines]


def text_pass(palette: dict[str, str]) -> str:
    """Which positions of four prompts are computed, by the layout that the text pass itself uses."""
    from kdpl.clip import load_clip
    from kdpl.text.prompts import CLIPS_OWN, context_prompts

    clip = load_clip("emoji_student")
    prompts = context_prompts(NAMES, N_CTX)
    layout = clip.layout(prompts)
    full = len(prompts) * clip.text.context_length
    d = Drawing(1010, 372, "The tokens that the text pass computes", palette)
    cell, shown = 62, max(map(len, prompts)) + 2
    for top, title, last in ((0, "All layers but the last", False), (196, "Last layer: queries and MLP", True)):
        d.text(10, top + 24, title, anchor="start", extra=BOLD)
        for i, prompt in enumerate(prompts):
            for p in range(shown):
                entry = prompt[p] if p < len(prompt) else None
                end = p == len(prompt) - 1
                computed = end if last else entry is not None and (p >= layout.prefix or i == 0)
                fill = "empty" if not computed else "learned" if p < layout.prefix else "second"
                x, y = 10 + cell * p, top + 40 + 34 * i
                d.rect(x, y, cell - 6, 28, fill, "line" if computed else "box")
                words = "" if entry is None else label(entry, p, end, CLIPS_OWN.decode)
                d.text(x + cell / 2 - 3, y + 19, words, "text" if computed else "muted", extra=SMALL)
            d.text(18 + cell * shown, top + 59 + 34 * i, f"… to {clip.text.context_length}", "muted", "start", SMALL)
    x = 80 + cell * shown
    for y, fill, words in ((56, "learned", "once for all"), (90, "second", "once a name"), (124, "empty", "not computed")):
        d.rect(x, y - 14, 20, 20, fill, "line")
        d.text(x + 28, y + 2, words, anchor="start", extra=SMALL)
    d.text(x, 160, f"{len(layout.rows)} of {full} tokens", anchor="start", extra=BOLD)
    d.text(x, 255, f"{len(layout)} of {full} tokens", anchor="start", extra=BOLD)
    return d.svg()


def label(entry: int, position: int, end: bool, decode: Callable[[int], str]) -> str:
    """Return what stands in the figure for an entry of a prompt."""
    if entry < 0:
        return f"v{'₁₂₃₄'[-1 - entry]}"
    return "SOT" if position == 0 else "EOT" if end else decode(entry).strip()


def photos(palette: dict[str, str]) -> str:
    """Accuracy on new photos of the same source, over the photos of each class that were learned from."""
    d = Drawing(980, 460, "Accuracy on new photos of the same source, by photos of each class", palette)
    photos_chart.photos(d, photos_chart.read_rows("photos.csv"))
    return d.svg()


FIGURES = {
    "method": method,
    "photos": photos,
    "results": results,
    "claims": claims,
    "text_pass": text_pass,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("figures", nargs="*", default=[], metavar="FIGURE", help=f"{', '.join(FIGURES)} (default: all)")
    args = parser.parse_args()
    for name in args.figures or FIGURES:
        for theme, palette in PALETTES.items():
            (HERE / f"{name}-{theme}.svg").write_text(FIGURES[name](palette), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
