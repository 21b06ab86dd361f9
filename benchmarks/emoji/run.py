"""The whole embedded benchmark, its tables and what they show: `python benchmarks/emoji/run.py`.

About seventy minutes on two cores. What is finished is not done again, so the same command resumes after any interruption.
Writes tables.md and claims.csv into OUTPUT.
"""

import argparse
import csv
import io
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from claims import ARTISTS, LEFT_OUT, NEW_SCENES, findings, markdown, on_domains, rows_of, summary, write_csv

from kdpl.common.files import atomic_write
from kdpl.experiments.report.cells import Draws
from kdpl.experiments.report.formats import render
from kdpl.experiments.report.runs import read_scores
from kdpl.experiments.report.tables import Table, all_tables
from kdpl.experiments.sweep.many import do_here, run_sweep
from kdpl.experiments.sweep.plan import read_sweep
from kdpl.experiments.sweep.runs import Sweep

HERE = Path(__file__).resolve().parent
DOCS = HERE.parents[1] / "docs"
SWEEPS = HERE.parents[1] / "configs" / "sweeps" / "emoji"
ON_NEW_SCENES = {  # sweeps whose prompts are tested again, as the paper does: on new images of the distribution of the training
    "zeroshot_new_scenes": "zeroshot",
    "sentence_new_scenes": "sentence",
    "base2new_new_scenes": "base2new",
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
    "zeroshot", "sentence", "base2new", *ON_NEW_SCENES, "base2new_agnostic", "transfer_zeroshot", "transfer",
    "transfer_agnostic", *VARIANTS, "few_shot", "cocoop_agnostic",
)  # fmt: skip
GROUPS = {"base_to_new": ("zeroshot", "sentence", "base2new", *ON_NEW_SCENES)}  # of --only


def sweep_in(name: str, output: Path) -> Sweep:
    """Return a sweep of the benchmark whose folders lie in `output` in place of output/benchmark."""
    sweep = read_sweep(SWEEPS / f"{'variant' if name in VARIANTS else ON_NEW_SCENES.get(name, name)}.yaml")
    options = [str(output / "features") if text == "output/benchmark/features" else text for text in sweep.options]
    settings = dict(zip(options[::2], options[1::2], strict=True)) | VARIANTS.get(name, {})
    if name in ON_NEW_SCENES:
        sweep, settings = (
            replace(sweep, steps=("test", "test_base")),
            settings | {"DATASET.TARGET_DOMAINS": repr(list(ARTISTS))},
        )
    options = [text for pair in settings.items() for text in pair]
    folder = name if name in VARIANTS else sweep.output.name
    trainers = ("KDPL_VPT",) if name == "depth_1" else sweep.trainers
    return replace(sweep, name=name, trainers=trainers, output=(output / folder).absolute(), options=tuple(options))


def publish(tables: Sequence[Table], rows: Sequence[Mapping[str, str]]) -> None:
    """Write what was measured into the committed tables, and a block into each page that shows a part."""
    write_csv(HERE / "claims.csv", rows)
    write_blocks(blocks_of(rows))
    write_csv(
        HERE / "tables.csv", [row for t in tables for row in csv.DictReader(io.StringIO(render([t], "csv", intervals=True)))]
    )


def committed(path: Path) -> list[dict[str, str]]:
    """Return the rows of a committed table; none if it is not there yet."""
    if not path.is_file():
        return []
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def blocks_of(rows: Sequence[Mapping[str, str]]) -> dict[tuple[Path, str], str]:
    """Return what the pages show of the claims, by page and name of the block."""
    return {
        (DOCS / "benchmark.md", "summary"): summary(rows),
        (DOCS / "class_agnostic.md", "agnostic"): markdown([row for row in rows if row["claim"] == "d"]),
    }


def write_blocks(blocks: Mapping[tuple[Path, str], str]) -> None:
    for (page, name), block in blocks.items():
        text = with_block(page.read_text(encoding="utf-8"), name, block)
        with atomic_write(page, "w") as file:
            file.write(text)


def with_block(text: str, name: str, block: str) -> str:
    """Return a page with another text between its marks of that name."""
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
    before, after = text.index(begin) + len(begin), text.index(end)
    return f"{text[:before]}\n{block}\n{text[after:]}"


def tables_of(output: Path) -> list[Table]:
    """Return the tables of all runs; those of base-to-new on new scenes of the training's artists, and on the one left out."""
    tables = []
    for folder in ("main", "few_shot"):
        if (output / folder).is_dir():
            scores, notes = read_scores([output / folder])
            print(*(f"Note: {note}" for note in notes), sep="\n", file=sys.stderr)
            new = [replace(s, tested=replace(s.tested, domains="")) for s in on_domains(scores, NEW_SCENES)]
            tables += [named(table, "") for table in all_tables(new)]
            tables += [named(table, LEFT_OUT) for table in all_tables(on_domains(scores, ""))]
    return tables


def named(table: Table, images: str) -> Table:
    return replace(table, subject=table.subject + images) if table.protocol == "base-to-new" else table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("output/benchmark"))
    parser.add_argument("--jobs", type=int, default=2, help="runs at once (default: 2)")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=(*GROUPS, *ORDER),
        default=ORDER,
        metavar="SWEEP",
        help=f"of {', '.join((*GROUPS, *ORDER))}",
    )
    parser.add_argument("--seeds", type=int, nargs="+", help="these alone")
    parser.add_argument("--publish", action="store_true", help="also write tables and claims into docs/")
    args = parser.parse_args()
    if args.publish and (args.seeds or args.only is not ORDER):
        parser.error("--publish writes the pages anew: leave --only and --seeds out.")
    for name in dict.fromkeys(sweep for given in args.only for sweep in GROUPS.get(given, (given,))):
        print(f"\n=== {name}", flush=True)
        sweep = sweep_in(name, args.output)
        if args.seeds:
            sweep = replace(sweep, seeds=tuple(s for s in sweep.seeds if s in args.seeds) or sweep.seeds[:1])
        if status := run_sweep(sweep, do_here(args.jobs)):
            print(f"{name} has not finished. The same command resumes it.", file=sys.stderr)
            return status

    tables, rows = tables_of(args.output), rows_of(findings(args.output), Draws())
    with atomic_write(args.output / "tables.md", "w") as file:
        file.write(render(tables, "markdown", intervals=True))
    if rows:
        write_csv(args.output / "claims.csv", rows)
    print("", markdown(rows), summary(rows), f"Tables and claims are in {args.output}", sep="\n")
    if args.publish:
        publish(tables, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
