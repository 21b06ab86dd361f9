"""The embedded benchmark's command: settings are those of the committed search, tables of other data, claims of runs."""

import csv
import re
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
from support import ROOT

from kdpl.config.defaults import literal
from kdpl.experiments.report.cells import Draws
from kdpl.experiments.sweep.runs import runs_of
from kdpl.training.results import write_results

sys.path.insert(0, str(ROOT / "benchmarks/emoji"))
import claims
import run


def test_the_configurations_are_what_the_search_chose():
    with open(claims.SEARCHED, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    chosen = {row["trainer"]: row["rate"] for row in rows if row["chosen"]}
    assert len(chosen) == 2 * len(claims.LEARNERS)
    for trainer, rate in {**chosen, "KgCoOp": chosen["CoOp"], "KDPL_KgCoOp": chosen["KDPL_CoOp"]}.items():
        text = (ROOT / f"configs/trainers/{trainer}/emoji.yaml").read_text()
        epochs = "2" if trainer.endswith("CoCoOp") else "5"
        assert re.findall(r"(?m)^  (?:LR|MAX_EPOCH): (.*)$", text) == [rate, epochs], trainer
    tried = {trainer: {row["rate"] for row in rows if row["trainer"] == trainer} for trainer in chosen}
    assert all({"0.0004", "0.002", "0.01", "0.05"} <= rates for rates in tried.values()), "the same search for all"


def sweeps() -> list[run.Sweep]:
    return [run.sweep_in(name, Path("out")) for name in run.ORDER]


@pytest.mark.slow
def test_the_command_runs_all_sweeps_with_the_settings_of_the_configurations():
    made = {*run.VARIANTS, *run.ON_NEW_SCENES}
    assert {path.stem for path in run.SWEEPS.glob("*.yaml")} == {*run.ORDER, "variant"} - made
    assert len({sweep.folder for sweep in sweeps()}) == len(run.ORDER)
    assert {name for group in run.GROUPS.values() for name in group} <= {*run.ORDER}
    for sweep in sweeps():
        keys = {
            key.rpartition(".")[2]: literal(value) for key, value in zip(sweep.options[::2], sweep.options[1::2], strict=True)
        }
        if sweep.name in run.VARIANTS:
            changed, value = next(iter(run.VARIANTS[sweep.name].items()))
            assert literal(value) == keys.pop(changed.rpartition(".")[2]) and set(sweep.trainers) <= {"KDPL_CoOp", "KDPL_VPT"}
            assert set(run.VARIANTS[sweep.name]) <= {changed, "TRAINER.KDPL.CACHE_DIR"}, "one setting at a time"
            assert sweep.output.name == sweep.name
        domains = keys.pop("TARGET_DOMAINS", None)
        again = sweep.name in run.ON_NEW_SCENES
        assert (domains == ["noto", "fluent"]) == (sweep.steps == ("test", "test_base")) == again, (
            "learned prompts, tested again"
        )
        allowed = {"VIEWS", "CACHE_DIR", "VOCABULARY", "K_MAX", "TEMPLATE"} | (
            {"MAX_EPOCH", "WARMUP_EPOCH"} if sweep.protocol == "xd" else set()
        )
        assert keys.keys() <= allowed, "nothing is tuned for one table"
        assert keys.get("CACHE_DIR", "out/features") == ("" if sweep.name == "fresh" else "out/features")
        assert sweep.output.parent == Path("out").absolute()
        assert len(sweep.seeds) >= (
            1
            if "zeroshot" in sweep.name or sweep.name.startswith("sentence")
            else 5
            if sweep.name.startswith("base2new")
            else 3
        )
        for planned in runs_of(replace(sweep, seeds=sweep.seeds[:1], shots=sweep.shots[:1])):
            assert planned.steps[0].settings, "no run refuses its configuration"


def add(
    folder: Path,
    trainer: str,
    classes: str,
    right: list[int],
    *,
    seed: int = 1,
    dataset: str = "EmojiSky",
    ca=False,
    domains=(),
) -> None:
    """Write the result of a run in which of 8 images of each class these were right."""
    teacher = "emoji_teacher" if trainer.startswith("KDPL") else None
    accuracy = 100 * sum(right) / (8 * len(right))
    method = f"{trainer}-CA" if ca else trainer
    write_results(
        folder / f"base2new/{'train_base' if classes == 'base' else 'test_new'}/{dataset}/shots_16/{method}/emoji/seed{seed}",
        {"trainer": trainer, "backbone": "emoji_student", "teacher": teacher, "class_agnostic": ca, "seed": seed, "shots": 16,
         "config": {"DATASET": {"NAME": dataset, "SUBSAMPLE_CLASSES": "base"}}},
        {"dataset": dataset, "split": "test", "classes": classes, "source_domains": [], "target_domains": list(domains),
         "num_classes": len(right), "num_images": 8 * len(right), "accuracy": accuracy, "error_rate": 100 - accuracy,
         "macro_f1": accuracy, "class_names": classes, "right_by_class": " ".join(f"{n}/8" for n in right)},
    )  # fmt: skip


def test_claims_are_shown_denied_or_open(tmp_path):
    base, new = [3, 2, 3, 4, 2, 3, 4, 3, 5, 4], [3, 4, 2, 3, 3, 4, 3, 2, 4, 3]
    main = tmp_path / "main"
    for classes, right in (("base", base), ("new", new)):
        add(main, "ZeroshotCLIP", classes, right)
        add(tmp_path / "sentence", "ZeroshotCLIP", classes, right)
        for seed in (1, 2, 3):
            add(main, "KDPL_CoOp", classes, [n + 1 + (seed + c) % 2 for c, n in enumerate(right)], seed=seed)
            mixed = [n + (4 if c % 2 else -1) for c, n in enumerate(right)]
            add(main, "CoOp", classes, mixed, seed=seed)
            add(main, "KDPL_CoOp", classes, [max(0, n - 1) for n in right], seed=seed, ca=True)
            add(tmp_path / "fresh", "KDPL_CoOp", classes, [n + 1 + (seed + c) % 2 for c, n in enumerate(right)], seed=seed)
    add(main, "ZeroshotCLIP", "new", new, domains=claims.ARTISTS)
    for seed in (1, 2, 3):
        add(main, "KDPL_CoOp", "new", [n - 1 - (seed + c) % 2 for c, n in enumerate(new)], seed=seed, domains=claims.ARTISTS)
    found, draws = claims.findings(tmp_path), Draws()
    verdicts = {(f.claim, f.pair, f.images): f.verdict(draws) for f in found}
    left_out = ", artist left out"
    assert verdicts["a", "KDPL_CoOp minus best sentence", f"base{left_out}"] == "shown"
    assert verdicts["b", "KDPL_CoOp minus zero-shot", f"new{left_out}"] == "shown"
    assert verdicts["b", "KDPL_CoOp minus CoOp", f"new{left_out}"] == "open"
    assert verdicts["b", "KDPL_CoOp minus zero-shot", "new"] == "denied", "other images"
    assert ("b", "KDPL_CoOp minus CoOp", "new") not in verdicts and (
        "a",
        "KDPL_CoOp minus best sentence",
        "base",
    ) not in verdicts
    assert verdicts["d", "KDPL_CoOp: class-agnostic minus class-aware", f"base{left_out}"] == "denied"
    assert verdicts["e", "KDPL_CoOp: 8 views minus fresh", f"H{left_out}"] == "shown", "they are equal, and a point is allowed"
    assert {f.claim for f in found} == {"a", "b", "d", "e"}, "what has no runs is left out"
    for seed in (1, 2, 3):  # as long as runs are missing, a mean is over other data sets or seeds
        add(main, "KDPL_CoOp", "new", base, seed=seed, dataset="EmojiPlants", ca=True)
    for classes in ("base", "new"):
        add(tmp_path / "fresh", "KDPL_CoOp", classes, base, seed=4, dataset="EmojiPlants")
    partial = {(f.claim, f.images) for f in claims.findings(tmp_path)}
    assert ("d", f"new{left_out}") not in partial and ("d", f"base{left_out}") in partial
    assert ("e", f"H{left_out}") not in partial
    rows = claims.rows_of(found, draws)
    text = claims.markdown(rows)
    assert "**(a) Without labels" in text and re.search(
        r"KDPL_CoOp minus best sentence +\| base, artist left out +\| \+18\.8", text
    ), text
    claims.write_csv(tmp_path / "claims.csv", rows)
    assert (
        (tmp_path / "claims.csv")
        .read_text()
        .splitlines()[1]
        .startswith('a,KDPL_CoOp minus best sentence,"base, artist left out",18.75')
    )


def test_a_difference_is_over_the_seeds_that_both_have(tmp_path):
    """The five seeds of the table are compared with a variant's three, as if the table had only these."""
    right = [3, 2, 3, 4, 2, 3, 4, 3, 5, 4]

    def results(folder: Path, seeds: range) -> list[claims.Finding]:
        for classes in ("base", "new"):
            for seed in seeds:
                add(folder / "main", "KDPL_CoOp", classes, [n + (seed == 4) * 3 + seed % 2 for n in right], seed=seed)
            for seed in (1, 2, 3):
                add(folder / "fresh", "KDPL_CoOp", classes, [n - seed % 2 for n in right], seed=seed)
        return claims.findings(folder)

    (five,), (three,) = results(tmp_path / "five", range(1, 6)), results(tmp_path / "three", range(1, 4))
    assert claims.rows_of([five], Draws()) == claims.rows_of([three], Draws())
    assert len(five.cell.values) == 3 and five.images == "H, artist left out" and five.cell.mean == three.cell.mean
    assert "| 3 " in claims.markdown(claims.rows_of([three], Draws()))
    add(tmp_path / "none/main", "KDPL_CoOp", "new", right, seed=1)
    add(tmp_path / "none/temperature_2", "KDPL_CoOp", "new", right, seed=2)
    (tmp_path / "none/fresh").mkdir()  # its first run has begun
    assert claims.findings(tmp_path / "none") == []


def test_the_page_shows_the_claims_that_are_drawn():
    with open(ROOT / "benchmarks/emoji/claims.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    page = (ROOT / "docs/benchmark.md").read_text(encoding="utf-8")
    blocks = run.blocks_of(rows)
    assert {path.name for path, _ in blocks} == {"benchmark.md", "class_agnostic.md"}
    for (path, name), block in blocks.items():
        text = path.read_text(encoding="utf-8")
        assert run.with_block(text, name, block) == text, "python benchmarks/emoji/run.py --publish"
    typed = re.sub(r"(?s)<!-- (\w+): begin -->.*?<!-- \1: end -->", "", page)
    typed = typed[typed.index("## Photos of one's own") : typed.index("## How it is kept fair")]
    assert not re.findall(r"\d\.\d", typed), "what the runs say stands in the blocks that they write"
    assert {row["claim"] for row in rows} == {*claims.CLAIMS, ""}
    for theme in ("light", "dark"):
        labels = re.findall(
            r'"end"[^>]*>([^<]*)</text>', (ROOT / f"docs/figures/claims-{theme}.svg").read_text(encoding="utf-8")
        )
        assert labels == list(claims.LEARNERS), "one row a learner"
    tables = run.committed(ROOT / "benchmarks/emoji/tables.csv")
    assert len({(row["protocol"], row["subject"]) for row in tables}) == 5 and {row["expected_seeds"] for row in tables} == {
        "3",
        "5",
    }


@pytest.mark.slow
def test_the_command_resumes_reports_and_publishes(tmp_path, monkeypatch, capsys):
    """With sweeps that are finished or fail at once: their runs are tested elsewhere."""
    output, docs = tmp_path / "output", tmp_path / "docs"
    docs.mkdir()
    (docs / "benchmark.md").write_text("<!-- summary: begin -->\n<!-- summary: end -->\n")
    (docs / "class_agnostic.md").write_text("<!-- agnostic: begin -->\n<!-- agnostic: end -->\n")
    monkeypatch.setattr(run, "DOCS", docs)
    monkeypatch.setattr(run, "HERE", tmp_path)
    ended, seeds = {"base2new": 75}, {}
    monkeypatch.setattr(run, "run_sweep", lambda sweep, do: seeds.update({sweep.name: sweep.seeds}) or ended.get(sweep.name, 0))
    monkeypatch.setattr(sys, "argv", ["run.py", "--output", str(output), "--publish"])
    assert run.main() == 75 and "base2new has not finished" in capsys.readouterr().err
    ended.clear()
    for dataset, domains in product(("EmojiSky", "EmojiPlants"), ((), claims.ARTISTS)):
        for classes in ("base", "new"):
            for seed in (1, 2):
                right = [[4, 6, 5], [7, 8, 7]][bool(domains)]
                add(output / "main", "KDPL_CoOp", classes, right, seed=seed, dataset=dataset, domains=domains)
                add(output / "main", "CoOp", classes, [4, 5, 5], seed=seed, dataset=dataset, domains=domains)
    assert run.main() == 0 and set(seeds) == {*run.ORDER}
    once = (docs / "benchmark.md").read_text()
    assert re.search(r"\| \(b\) +\| KDPL minus labels +\| new +\| \+33\.3 to \+33\.3 +\|.*\n", once)
    assert re.search(r"\| \(b\) +\| KDPL minus labels +\| new, artist left out +\| \+4\.2 to \+4\.2 +\|.*\n", once)
    tables = (tmp_path / "tables.csv").read_text()
    titles = list(dict.fromkeys(row["subject"] for row in run.committed(tmp_path / "tables.csv")))
    assert titles == [f"student emoji_student, 16 shots{words}" for words in ("", ", artist left out")]
    assert "EmojiPlants" in tables
    assert (tmp_path / "claims.csv").read_text() == (output / "claims.csv").read_text()
    assert run.main() == 0 and (docs / "benchmark.md").read_text() == once
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--seeds", "2"])
    with pytest.raises(SystemExit):
        run.main()
