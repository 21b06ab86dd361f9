"""Run the trainers of public forks without labels, and print the rows of docs/forks_runs.md.

    python tests/forks/run.py FORK [FORK ...] [--dassl FOLDER] [--only NAME ...] [--prepare NAME=FILE] [--set KEY VALUE ...]

FORK is the folder of a fork's `train.py`, in a Git checkout; nothing in it is changed. Each trainer runs as in the trial of
`kdpl.install` (kdpl/forks/report.py): by the fork's own main(), for a few steps, again with what a refusal asks for. Its
data are drawings on disk with the split file of Caltech101, read by the fork's own data set class. It then runs a second time
with the labels of the training split permuted in that file: what it has learned must be the same bit for bit. Loss and
gradients are compared with their own computation, to 1e-6 or, where rounding adds up to more, in double precision to 1e-12. The
exit status is 1 if a row does not hold what docs/forks.md promises.

The files of --prepare beside this one, `exact.py`, `double.py` and `compare.py`, measure in the process of a trial. With
--compare, a trainer that KDPL has too is also compared with KDPL's own in four steps. --page FILE writes the rows into a
page, in the place of those of the same fork, trainer and Dassl.
"""

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from kdpl.forks.report import tried
from kdpl.forks.start import trial

HEAD = "| fork | commit | Dassl | trainer | settings | without labels | truth permuted | loss and gradients by formula |\n"
RULE = "| --- | --- | --- | --- | --- | --- | --- | --- |\n"
EXACT, EXACT_IN_DOUBLE = 1e-6, 1e-12
MEASURES = {
    name: ("--prepare", str(Path(__file__).resolve().with_name(f"{name}.py"))) for name in ("exact", "double", "compare")
}
KEYS = ("loss_differs", "gradient_differs", "gradient_of_parameters_differs")
NAMES = ("accordion", "airplane", "anchor", "ant", "barrel", "bass", "beaver", "binocular", "bonsai", "brain")  # of Caltech101
IMAGES = {"train": 5, "val": 1, "test": 1}  # a class


def write_data(folder: Path, permute: bool) -> Path:
    """Write drawings under the names of ten classes of Caltech101 as its files and its split file lie on disk.

    Args:
        folder: receives them.
        permute: give the labels of the training images to others, as many of each class, within the base classes and the new.
    """
    from kdpl.common.files import cache_dir
    from kdpl.datasets.emoji.scenes import EmojiMeals, scene_folder

    drawings = sorted(scene_folder(cache_dir(), EmojiMeals.plan_name).rglob("*.png"))
    data = folder / "caltech-101"
    split: dict[str, list] = {}
    for part, count in IMAGES.items():
        split[part] = []
        for label, name in enumerate(NAMES):
            for number in range(count):
                image = f"{name}/{part}_{number}.png"
                path = data / "101_ObjectCategories" / image
                path.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(drawings.pop(), path)
                split[part].append([image, label, name])
    if permute:
        half = len(split["train"]) // 2
        labels = [row[1] for row in split["train"]]
        shuffled = [*random.Random(1).sample(labels[:half], half), *random.Random(2).sample(labels[half:], half)]
        assert shuffled != labels
        split["train"] = [[image, new, NAMES[new]] for (image, *_), new in zip(split["train"], shuffled, strict=True)]
    (data / "split_zhou_Caltech101.json").write_text(json.dumps(split), encoding="utf-8")
    (folder / "classnames.txt").write_text("\n".join(NAMES[: len(NAMES) // 2]), encoding="utf-8")
    return folder


def row(fork: Path, name: str, offer: str, args: argparse.Namespace, data: Sequence[Path]) -> tuple[str, bool]:
    """Run one trainer and return its line of the table, and whether what is promised holds."""
    prepare = dict(pair.split("=", 1) for pair in args.prepare).get(name, "")
    extra = [*MEASURES["exact"], "--clips", str(data[0].parent), *(["--prepare", os.path.abspath(prepare)] if prepare else [])]
    whole = ["DATASET.NUM_SHOTS", "-1"]  # a draw of shots would go by the labels
    *_, last = tried(fork, name, offer, [*whole, *args.set], [*extra, "--root", str(data[0])], args.layers)
    found, holds, exact, same = last.found, True, "", ""
    offer = found.get("trainers", {}).get(name, offer)
    if "moved" in found:
        result = f"{found['steps']} steps, {found['moved']} of {found['learned']} parameters moved"
        extra += ["--layers", found["layers"], "--set", *last.options]
        again = trial(fork, "--trainer", name, "--root", str(data[1]), *extra)
        same = "the same bits" if again.get("digest") == found["digest"] else f"DIFFERS {again.get('error', '')}"
        double = ("--trainer", name, *MEASURES["double"], "--root", str(data[0]), *extra)
        exact, holds = exactness(found, lambda: trial(fork, *double))
        holds = holds and found["moved"] > 0
        holds = holds and same == "the same bits"
    else:
        holds = last.works is None or "refused" in found  # with its labels it stops too, or a reason is given
        result = last.line.partition(": ")[2].replace("\n     ", "; ").replace("|", "\\|").replace(f"{fork}/", "./")
        result = re.sub(r"\\x1b\[\d*m", "", result)  # colours, as they are spelt out
    options = last.options[len(whole) :]
    settings = " ".join(f"`{key} {value}`" for key, value in zip(options[::2], options[1::2], strict=True))
    cells = [name_of(fork), commit(fork), found.get("dassl", ""), offer, settings, result, same, exact]
    return f"| {' | '.join(cells)} |\n", holds


def exactness(found: dict[str, Any], in_double: Callable[[], dict[str, Any]]) -> tuple[str, bool]:
    """Return how far a trial is from the formula, for the table, and whether that is rounding.

    It is, if it is below the bound, or if the same trial in double precision has a difference that is smaller by as much as its
    rounding is.
    """
    said = ", ".join(f"{found[key]:.0e}" if key in found else "-" for key in KEYS)
    if all(found.get(key, 0) <= EXACT for key in KEYS):
        return said, True
    double = in_double()
    said += "; in double precision " + (double.get("error") or ", ".join(f"{double[key]:.0e}" for key in KEYS if key in double))
    return said, all(double.get(key, 1) <= EXACT_IN_DOUBLE for key in KEYS if key in found)


def compared(fork: Path, name: str, args: argparse.Namespace) -> str:
    """Return how one trainer and KDPL's own differ in four steps."""
    found = trial(fork, "--trainer", name, *MEASURES["compare"], *(["--set", *args.set] if args.set else []))
    if differences := found.get("compared"):
        return f"{name}, against KDPL's own: loss {differences['loss']:.0e}, parameters {differences['parameters']:.0e}"
    return f"{name}, against KDPL's own: {found.get('incomparable') or found.get('error') or found.get('refused')}"


def name_of(fork: Path) -> str:
    return fork.resolve().name if (fork / ".git").exists() else f"{fork.resolve().parent.name}/{fork.resolve().name}"


def commit(fork: Path) -> str:
    process = subprocess.run(["git", "-C", fork, "rev-parse", "--short=7", "HEAD"], capture_output=True, text=True, check=False)
    return process.stdout.strip()


def write(page: Path, line: str) -> None:
    """Put a row into the first table of a page, in the place of that of the same fork, Dassl and trainer."""
    before, _, rest = page.read_text(encoding="utf-8").partition(HEAD + RULE)
    rows, after = [], rest.splitlines(keepends=True)
    while after and after[0].startswith("|"):
        rows.append(after.pop(0))

    def key(row: str) -> list[str]:
        cells = row.split(" | ")
        return [cells[0], cells[2], cells[3]]

    rows = sorted([*(other for other in rows if key(other) != key(line)), line], key=lambda row: list(map(str.lower, key(row))))
    page.write_text("".join([before, HEAD, RULE, *rows, *after]), encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("forks", nargs="+", type=Path, metavar="FORK")
    parser.add_argument("--dassl", default="", help="folder that `import dassl` is to find, in place of the bundled engine")
    parser.add_argument("--only", nargs="*", default=[], metavar="NAME", help="these trainers alone")
    parser.add_argument("--layers", default="", metavar="N", help="of the small CLIP")
    parser.add_argument("--prepare", action="append", default=[], metavar="NAME=FILE")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY VALUE")
    parser.add_argument("--compare", action="store_true")
    parser.add_argument("--page", type=Path)
    args = parser.parse_args()
    if args.dassl:
        if not Path(args.dassl, "dassl").is_dir():
            parser.error(f"--dassl '{args.dassl}' has no folder dassl: expected a checkout of Dassl.pytorch")
        os.environ["PYTHONPATH"] = os.pathsep.join(p for p in (args.dassl, os.environ.get("PYTHONPATH", "")) if p)
    all_hold = True
    with tempfile.TemporaryDirectory() as folder:
        data = [write_data(Path(folder, name), permute=name == "permuted") for name in ("true", "permuted")]
        for fork in args.forks:
            all_hold = run(fork, args, data) and all_hold
    return 0 if all_hold else 1


def run(fork: Path, args: argparse.Namespace, data: Sequence[Path]) -> bool:
    """Run a fork's trainers, print and write their rows, and return whether what is promised holds."""
    listed = {"trainers": {name: name for name in args.only}} if args.only else trial(fork)
    all_hold = True
    if "trainers" not in listed:
        print(f"{fork}: {listed.get('error')}; {listed.get('where')}; {listed.get('way_out')}", flush=True)
        return False
    for name, offer in listed["trainers"].items():
        line, holds = row(fork, name, offer, args, data)
        print(line, end="", flush=True)
        all_hold = all_hold and holds
        if args.page:
            write(args.page, line)
        if args.compare and not line.split(" | ")[3].startswith("KDPL_"):
            print(compared(fork, name, args), flush=True)
    return all_hold


if __name__ == "__main__":
    sys.exit(main())
