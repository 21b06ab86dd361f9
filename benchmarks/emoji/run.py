"""The whole embedded benchmark, its tables and what they show: `python benchmarks/emoji/run.py`.

About seventy minutes on two cores. What is finished is not done again, so the same command resumes after any interruption.
Writes tables.md and claims.csv into OUTPUT, and its charts into OUTPUT/charts.
"""

import argparse
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from claims import findings, markdown, rows_of, summary, write_csv

from kdpl.common.files import atomic_write
from kdpl.experiments.report.formats import render
from kdpl.experiments.report.intervals import Draws
from kdpl.experiments.report.plots import draw
from kdpl.experiments.report.runs import read_scores
from kdpl.experiments.report.tables import AVERAGE, Table, all_tables
from kdpl.experiments.sweep.local import run_local
from kdpl.experiments.sweep.plan import read_sweep
from kdpl.experiments.sweep.runs import Sweep

HERE = Path(__file__).resolve().parent
DOCS = HERE.parents[1] / "docs"
SWEEPS = HERE.parents[1] / "configs" / "sweeps" / "emoji"
HEAD = """# Tables of the embedded benchmark

All that `python benchmarks/emoji/run.py --publish` measures; [the benchmark](benchmark.md) says what it is and what the tables
show. Zero-shot trainers have one result; `ZeroshotCLIP2` is the mean of 80 sentences and the data set's own.
"""
VALIDATION = {  # sweeps whose prompts are tested again, on validation images: of new classes, by the artists of the training
    "zeroshot_same_artists": "zeroshot",
    "base2new_same_artists": "base2new",
}
VARIANTS = {  # of the sweep "variant": what is changed
    "fresh": {"TRAINER.KDPL.VIEWS": "0", "TRAINER.KDPL.CACHE_DIR": ""},
    "teacher_weak": {"TRAINER.KDPL.TEACHER": "emoji_student"},
    "teacher_middle": {"TRAINER.KDPL.TEACHER": "emoji_student + emoji_teacher"},
    "temperature_2": {"TRAINER.KDPL.TEMPERATURE": "2.0"},
    "loss_forward": {"TRAINER.KDPL.LOSS": "forward"},
    "loss_reverse": {"TRAINER.KDPL.LOSS": "reverse"},
    "depth_1": {"TRAINER.VPT.PROMPT_DEPTH_VISION": "1"},
}
ORDER = (
    "zeroshot", "sentence", "base2new", *VALIDATION, "base2new_agnostic", "transfer_zeroshot", "transfer", "transfer_agnostic",
    *VARIANTS,
    "few_shot", "cocoop_agnostic",
)  # fmt: skip


def sweep_in(name: str, output: Path) -> Sweep:
    """Return a sweep of the benchmark whose folders lie in `output` in place of output/benchmark."""
    sweep = read_sweep(SWEEPS / f"{'variant' if name in VARIANTS else VALIDATION.get(name, name)}.yaml")
    options = [str(output / "features") if text == "output/benchmark/features" else text for text in sweep.options]
    settings = dict(zip(options[::2], options[1::2], strict=True)) | VARIANTS.get(name, {})
    if name in VALIDATION:
        sweep, settings = replace(sweep, steps=("test",)), settings | {"TEST.SPLIT": "val"}
    options = [text for pair in settings.items() for text in pair]
    folder = name if name in VARIANTS else sweep.output.name
    trainers = ("KDPL_VPT",) if name == "depth_1" else sweep.trainers
    return replace(sweep, name=name, trainers=trainers, output=(output / folder).absolute(), options=tuple(options))


def publish(output: Path, tables: Sequence[Table], rows: Sequence[Mapping[str, str]]) -> None:
    """Write claims.csv beside this file, all tables into a page of their own, and a block into each page that shows a part."""
    write_csv(HERE / "claims.csv", rows)
    (whole,) = (table for table in tables if table.protocol == "base-to-new")
    averages = replace(whole, rows=[row for row in whole.rows if row.labels[0] == AVERAGE])
    write_blocks(
        {
            **blocks_of(rows),
            (DOCS / "benchmark.md", "averages"): render([averages], "markdown", intervals=True),
            (DOCS / "benchmark.md", "charts"): pictures(copy_charts(output / "charts", DOCS / "figures/benchmark")),
        }
    )
    with atomic_write(DOCS / "benchmark_tables.md", "w") as file:
        file.write(f"{HEAD}\n{render(tables, 'markdown', intervals=True)}")


def blocks_of(rows: Sequence[Mapping[str, str]]) -> dict[tuple[Path, str], str]:
    """Return what the pages show of the claims, by page and name of the block."""
    return {
        (DOCS.parent / "README.md", "summary"): summary(rows),
        (DOCS / "benchmark.md", "summary"): summary(rows),
        (DOCS / "benchmark.md", "claims"): markdown(rows),
        (DOCS / "class_agnostic.md", "agnostic"): markdown([row for row in rows if row["claim"] == "d"]),
    }


def write_blocks(blocks: Mapping[tuple[Path, str], str]) -> None:
    for (page, name), block in blocks.items():
        text = with_block(page.read_text(encoding="utf-8"), name, block)
        with atomic_write(page, "w") as file:
            file.write(text)


def copy_charts(charts: Path, folder: Path) -> list[Path]:
    """Let `folder` hold the charts of the page, the bars and the mean of the few-shot curves, and no others; return them."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    chosen = [p for p in sorted(charts.glob("*.svg")) if "-bars-" in p.name or re.match("few-shot.*-average-", p.name)]
    return [Path(shutil.copy(path, folder)) for path in chosen]


def pictures(charts: Sequence[Path]) -> str:
    """Return HTML that shows charts, which come as NAME-light.svg and NAME-dark.svg."""
    parts = []
    for stem in dict.fromkeys(re.sub("-(light|dark)$", "", path.stem) for path in charts):
        at = f"{charts[0].parent.relative_to(DOCS).as_posix()}/{stem}"
        parts.append(
            f'<picture>\n  <source media="(prefers-color-scheme: dark)" srcset="{at}-dark.svg">\n'
            f'  <img alt="{stem.replace("-", " ")}" src="{at}-light.svg">\n</picture>\n'
        )
    return "\n".join(parts)


def with_block(text: str, name: str, block: str) -> str:
    """Return a page with another text between its marks of that name."""
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
    before, after = text.index(begin) + len(begin), text.index(end)
    return f"{text[:before]}\n{block}\n{text[after:]}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("output/benchmark"))
    parser.add_argument("--jobs", type=int, default=2, help="runs at once (default: 2)")
    parser.add_argument("--only", nargs="+", choices=ORDER, default=ORDER, metavar="SWEEP", help=f"of {', '.join(ORDER)}")
    parser.add_argument("--publish", action="store_true", help="also write tables, charts and claims into docs/")
    args = parser.parse_args()
    for name in args.only:
        print(f"\n=== {name}", flush=True)
        if status := run_local(sweep_in(name, args.output), args.jobs):
            print(f"{name} has not finished. The same command resumes it.", file=sys.stderr)
            return status

    tables = []
    for folder in ("main", "few_shot"):
        if (args.output / folder).is_dir():
            scores, notes = read_scores([args.output / folder])
            print(*(f"Note: {note}" for note in notes), sep="\n", file=sys.stderr)
            tables += all_tables(scores)
    rows = rows_of(findings(args.output), Draws())
    with atomic_write(args.output / "tables.md", "w") as file:
        file.write(render(tables, "markdown", intervals=True))
    write_csv(args.output / "claims.csv", rows)
    shutil.rmtree(args.output / "charts", ignore_errors=True)  # no chart of earlier runs beside these tables
    draw(tables, args.output / "charts", "svg")
    print("", markdown(rows), summary(rows), f"Tables, claims and charts are in {args.output}", sep="\n")
    if args.publish:
        publish(args.output, tables, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
