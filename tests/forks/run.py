"""Run the trainers of public forks without labels, and print the rows of docs/forks_runs.md.

    python tests/forks/run.py FORK [FORK ...] [--dassl FOLDER] [--only NAME ...] [--prepare NAME=FILE] [--set KEY VALUE ...]

FORK is the folder of a fork's `train.py`, in a Git checkout; nothing in it is changed. Each trainer runs as in the trial of
`kdpl.install` (kdpl/forks/report.py): by the fork's own main(), for some ten steps, again with what a refusal asks for. With
--compare, one that KDPL has too is also compared with KDPL's own in four steps. --page FILE writes the rows into a page, in the
place of those of the same fork, trainer and Dassl.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

from kdpl.forks.report import tried
from kdpl.forks.start import trial

HEAD = "| fork | commit | Dassl | trainer | settings | without labels | loss and gradient against the formula |\n"
RULE = "| --- | --- | --- | --- | --- | --- | --- |\n"


def row(fork: Path, name: str, offer: str, args: argparse.Namespace) -> str:
    """Run one trainer and return its line of the table."""
    prepare = dict(pair.split("=", 1) for pair in args.prepare).get(name, "")
    *_, last = tried(fork, name, offer, args.set, os.path.abspath(prepare) if prepare else "", args.layers)
    found, exact = last.found, ""
    if "moved" in found:
        result = f"{found['steps']} steps, {found['moved']} of {found['learned']} parameters moved"
        if "loss_differs" in found:
            exact = f"{found['loss_differs']:.0e}, {found['gradient_differs']:.0e}"
    else:
        result = last.line.partition(": ")[2].replace("\n     ", "; ").replace("|", "\\|").replace(f"{fork}/", "")
    settings = " ".join(f"`{key} {value}`" for key, value in zip(last.options[::2], last.options[1::2], strict=True))
    return f"| {name_of(fork)} | {commit(fork)} | {found.get('dassl', '')} | {offer} | {settings} | {result} | {exact} |\n"


def compared(fork: Path, name: str, args: argparse.Namespace) -> str:
    """Return how one trainer and KDPL's own differ in four steps."""
    found = trial(fork, "--trainer", name, "--compare", *(["--set", *args.set] if args.set else []))
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
    for fork in args.forks:
        listed = trial(fork)
        if "trainers" not in listed:
            print(f"{fork}: {listed.get('error')}; {listed.get('where')}; {listed.get('way_out')}", flush=True)
        for name, offer in listed.get("trainers", {}).items():
            if not args.only or name in args.only:
                line = row(fork, name, offer, args)
                print(line, end="", flush=True)
                if args.page:
                    write(args.page, line)
                if args.compare and not offer.startswith("KDPL_"):
                    print(compared(fork, name, args), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
