"""The embedded benchmark's command: settings are those of the committed search, tables of other data, claims of runs."""

import csv
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from support import ROOT

from kdpl.config.merging import literal
from kdpl.experiments.report.intervals import Draws
from kdpl.experiments.results import write_results
from kdpl.experiments.sweep.runs import runs_of

sys.path.insert(0, str(ROOT / "benchmarks/emoji"))
import claims
import run
import search


def test_the_configurations_are_what_the_search_chose():
    chosen = search.chosen_rates()
    assert set(chosen) == set(search.TRAINERS)
    for trainer, rate in {**chosen, "KgCoOp": chosen["CoOp"], "KDPL_KgCoOp": chosen["KDPL_CoOp"]}.items():
        text = (ROOT / f"configs/trainers/{trainer}/emoji.yaml").read_text()
        epochs = search.COCOOP_EPOCHS if trainer.endswith("CoCoOp") else search.EPOCHS
        assert re.findall(r"(?m)^  (?:LR|MAX_EPOCH): (.*)$", text) == [rate, str(epochs)], trainer


def test_the_search_takes_the_highest_mean_and_prefers_less_of_equals():
    folds = [("emoji_sky", 1), ("emoji_sky", 2)]
    points = {
        rate: dict(zip(folds, values, strict=True))
        for rate, values in {"0.01": (49.0, 51.0), "0.05": (50.0, 50.0), "0.002": (60.0, 39.0)}.items()
    }
    assert search.best(points) == "0.01"


def test_with_and_without_labels_have_the_same_search():
    tried: dict[str, set[str]] = {}
    with open(search.CHOSEN, encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            tried.setdefault(row["trainer"], set()).add(row["rate"])
            assert float(row["below"]) >= 0 and (row["below"] == "0.00" or not row["chosen"])
            assert bool(row["H of an artist left out"]) == (row["rate"] in search.RATES)
    for trainer, rates in tried.items():
        edge = search.BEYOND.get(search.chosen_rates()[trainer])
        assert rates - set(search.BEYOND.values()) == set(search.RATES) and (not edge or edge in rates), trainer


@pytest.mark.slow
def test_the_search_sees_data_sets_that_no_base_to_new_table_shows_and_no_test_image(monkeypatch, tmp_path):
    swept, read = [], []
    monkeypatch.setattr(search, "run_local", lambda sweep: swept.append(sweep) and 0)
    monkeypatch.setattr(search, "read_scores", lambda folders, split: read.append(split) or scores_of(swept[-1]))
    shown = {name for sweep in sweeps() if sweep.protocol != "xd" for name in sweep.datasets}
    assert not shown & set(search.DATASETS) and len(shown | set(search.DATASETS)) == 10
    trainers = ["CoOp", "CoCoOp", "KDPL_CoOp"]

    found = search.measure(trainers, "0.01", tmp_path, 1)
    folds = {(name, seed) for name in search.DATASETS for seed in (1, 2)}
    assert {trainer: set(values) for trainer, values in found.items()} == dict.fromkeys(trainers, folds)
    assert found["CoOp"]["emoji_sky", 2] == pytest.approx(2 * 40 * 60 / 100)
    assert read == ["val", "val"] and all(s.options[-2:] == ("TEST.SPLIT", "val") for s in swept)
    assert not any("MAX_EPOCH" in key for sweep in swept for key in sweep.options)

    swept.clear(), read.clear()
    found = search.on_artist_left_out(tmp_path, 1)
    assert set(found) == {(trainer, rate) for trainer in search.TRAINERS for rate in search.RATES}
    assert set(read) == {"test"} and len(swept) == 2 * 2 * len(search.RATES)
    domains = set()
    for sweep in swept:
        keys = dict(zip(sweep.options[::2], map(literal, sweep.options[1::2]), strict=True))
        domains.add((keys["DATASET.SOURCE_DOMAINS"], keys["DATASET.TARGET_DOMAINS"]))
        table = ROOT / f"configs/trainers/{sweep.trainers[0]}/emoji.yaml"
        assert f"MAX_EPOCH: {keys['OPTIM.MAX_EPOCH'] // 2}\n" in table.read_text(), "half the images, twice the epochs"
        assert all(planned.steps[0].settings for planned in runs_of(sweep)), "no run refuses its configuration"
    assert domains == {(("fluent",), ("noto",)), (("noto",), ("fluent",))}


def scores_of(sweep: run.Sweep) -> tuple[list, list]:
    """Return results of a sweep's runs, 40 on base classes and 60 on new ones."""
    return [
        SimpleNamespace(
            tested=SimpleNamespace(dataset=name, classes=half),
            method=SimpleNamespace(name=trainer),
            seed=seed,
            accuracy=accuracy,
        )
        for name in sweep.datasets
        for trainer in sweep.trainers
        for seed in sweep.seeds
        for half, accuracy in (("base", 40.0), ("new", 60.0))
    ], []


def sweeps() -> list[run.Sweep]:
    return [run.sweep_in(name, Path("out")) for name in run.ORDER]


@pytest.mark.slow
def test_the_command_runs_all_sweeps_with_the_settings_of_the_configurations():
    assert {path.stem for path in run.SWEEPS.glob("*.yaml")} == {*run.ORDER, "variant"} - {*run.VARIANTS, *run.VALIDATION}
    assert len({sweep.folder for sweep in sweeps()}) == len(run.ORDER)
    for sweep in sweeps():
        keys = {
            key.rpartition(".")[2]: literal(value) for key, value in zip(sweep.options[::2], sweep.options[1::2], strict=True)
        }
        if sweep.name in run.VARIANTS:
            changed, value = next(iter(run.VARIANTS[sweep.name].items()))
            assert literal(value) == keys.pop(changed.rpartition(".")[2]) and set(sweep.trainers) <= {"KDPL_CoOp", "KDPL_VPT"}
            assert set(run.VARIANTS[sweep.name]) <= {changed, "TRAINER.KDPL.CACHE_DIR"}, "one setting at a time"
            assert sweep.output.name == sweep.name
        split = keys.pop("SPLIT", "test")
        assert (split == "val") == (sweep.steps == ("test",)) == (sweep.name in run.VALIDATION), "learned prompts, tested again"
        allowed = {"VIEWS", "CACHE_DIR", "VOCABULARY", "K_MAX", "TEMPLATE"} | (
            {"MAX_EPOCH", "WARMUP_EPOCH"} if sweep.protocol == "xd" else set()
        )
        assert keys.keys() <= allowed, "nothing is tuned for one table"
        assert keys.get("CACHE_DIR", "out/features") == ("" if sweep.name == "fresh" else "out/features")
        assert sweep.output.parent == Path("out").absolute()
        assert len(sweep.seeds) >= (
            1 if "zeroshot" in sweep.name or sweep.name == "sentence" else 5 if sweep.name.startswith("base2new") else 3
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
    split="test",
) -> None:
    """Write the result of a run in which of 8 images of each class these were right."""
    teacher = "emoji_teacher" if trainer.startswith("KDPL") else None
    accuracy = 100 * sum(right) / (8 * len(right))
    method = f"{trainer}-CA" if ca else trainer
    write_results(
        folder / f"base2new/{'train_base' if classes == 'base' else 'test_new'}/{dataset}/shots_16/{method}/emoji/seed{seed}",
        {"trainer": trainer, "backbone": "emoji_student", "teacher": teacher, "class_agnostic": ca, "seed": seed, "shots": 16,
         "config": ""},
        {"dataset": dataset, "split": split, "classes": classes, "source_domains": [], "target_domains": [],
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
    add(main, "ZeroshotCLIP", "new", new, split="val")
    for seed in (1, 2, 3):
        add(main, "KDPL_CoOp", "new", [n - 1 - (seed + c) % 2 for c, n in enumerate(new)], seed=seed, split="val")
    found, draws = claims.findings(tmp_path), Draws()
    verdicts = {(f.claim, f.pair, f.images): f.verdict(draws) for f in found}
    assert verdicts["a", "KDPL_CoOp minus best sentence", "base"] == "shown"
    assert verdicts["b", "KDPL_CoOp minus zero-shot", "new"] == "shown"
    assert verdicts["b", "KDPL_CoOp minus CoOp", "new"] == "open"
    assert verdicts["b", "KDPL_CoOp minus zero-shot", "new, same artists"] == "denied", "other images"
    assert ("b", "KDPL_CoOp minus CoOp", "new, same artists") not in verdicts
    assert verdicts["d", "KDPL_CoOp: class-agnostic minus class-aware", "base"] == "denied"
    assert verdicts["e", "KDPL_CoOp: 8 views minus fresh", "H"] == "shown", "they are equal, and a point is allowed"
    assert {f.claim for f in found} == {"a", "b", "d", "e"}, "what has no runs is left out"
    for seed in (1, 2, 3):  # as long as runs are missing, a mean is over other data sets or seeds
        add(main, "KDPL_CoOp", "new", base, seed=seed, dataset="EmojiPlants", ca=True)
    for classes in ("base", "new"):
        add(tmp_path / "fresh", "KDPL_CoOp", classes, base, seed=4, dataset="EmojiPlants")
    partial = {(f.claim, f.images) for f in claims.findings(tmp_path)}
    assert ("d", "new") not in partial and ("d", "base") in partial and ("e", "H") not in partial
    rows = claims.rows_of(found, draws)
    text = claims.markdown(rows)
    assert "**(a) Without labels" in text and re.search(r"KDPL_CoOp minus best sentence +\| base +\| \+18\.8", text), text
    claims.write_csv(tmp_path / "claims.csv", rows)
    assert (tmp_path / "claims.csv").read_text().splitlines()[1].startswith("a,KDPL_CoOp minus best sentence,base,18.75")


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
    assert len(five.cell.values) == 3 and five.images == "H" and five.cell.mean == three.cell.mean
    assert "| 3 " in claims.markdown(claims.rows_of([three], Draws()))
    add(tmp_path / "none/main", "KDPL_CoOp", "new", right, seed=1)
    add(tmp_path / "none/temperature_2", "KDPL_CoOp", "new", right, seed=2)
    (tmp_path / "none/fresh").mkdir()  # its first run has begun
    assert claims.findings(tmp_path / "none") == []


def test_the_page_shows_the_claims_that_are_drawn():
    with open(ROOT / "benchmarks/emoji/claims.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    page = (ROOT / "docs/benchmark.md").read_text(encoding="utf-8")
    assert {path.name for path, _ in run.blocks_of(rows)} == {"README.md", "benchmark.md", "class_agnostic.md"}
    for (path, name), block in run.blocks_of(rows).items():
        text = path.read_text(encoding="utf-8")
        assert run.with_block(text, name, block) == text, "python benchmarks/emoji/run.py --publish"
    typed = re.sub(r"(?s)<!-- (\w+): begin -->.*?<!-- \1: end -->", "", page)
    typed = typed[typed.index("## What it shows") : typed.index("## How it is kept fair")]
    assert not re.findall(r"\d\.\d", typed), "what the runs say stands in the blocks that they write"
    assert {row["claim"] for row in rows} == {*claims.CLAIMS, ""}
    for theme in ("light", "dark"):
        labels = re.findall(
            r'"end"[^>]*>([^<]*)</text>', (ROOT / f"docs/figures/claims-{theme}.svg").read_text(encoding="utf-8")
        )
        assert labels == list(claims.LEARNERS), "one row a learner"
    charts = re.search(r"<!-- charts: begin -->\n(.*)<!-- charts: end -->", page, re.S)[1]
    shown = {ROOT / "docs" / name for name in re.findall(r'(?:src|srcset)="(.*?)"', charts)}
    assert shown == set((ROOT / "docs/figures/benchmark").iterdir())
    tables = (ROOT / "docs/benchmark_tables.md").read_text(encoding="utf-8")
    averages = re.search(r"<!-- averages: begin -->\n(.*)<!-- averages: end -->", page, re.S)[1]
    shown = [line.split("|")[2:] for line in averages.splitlines() if re.match(r"\| (average| ) ", line)]
    assert len(shown) > 12
    in_tables = {tuple(cell.strip() for cell in line.split("|")[2:]) for line in tables.splitlines()}
    assert {tuple(cell.strip() for cell in line) for line in shown} <= in_tables


@pytest.mark.slow
def test_the_command_resumes_reports_and_publishes(tmp_path, monkeypatch, capsys):
    """With sweeps that are finished or fail at once: their runs are tested elsewhere."""
    pytest.importorskip("matplotlib")
    output, docs = tmp_path / "output", tmp_path / "docs"
    docs.mkdir()
    (docs / "benchmark.md").write_text(
        "<!-- summary: begin -->\n<!-- summary: end -->\n"
        "A\n<!-- claims: begin -->\n<!-- claims: end -->\nB\n<!-- averages: begin -->\nold\n<!-- averages: end -->\nC\n"
        "<!-- charts: begin -->\n<!-- charts: end -->\n"
    )
    (docs / "class_agnostic.md").write_text("<!-- agnostic: begin -->\n<!-- agnostic: end -->\n")
    (tmp_path / "README.md").write_text("Before\n<!-- summary: begin -->\nold\n<!-- summary: end -->\nafter\n")
    monkeypatch.setattr(run, "DOCS", docs)
    monkeypatch.setattr(run, "HERE", tmp_path)
    ended = {"base2new": 75}
    monkeypatch.setattr(run, "run_local", lambda sweep, jobs: ended.get(sweep.name, 0))
    monkeypatch.setattr(sys, "argv", ["run.py", "--output", str(output), "--publish"])
    assert run.main() == 75 and "base2new has not finished" in capsys.readouterr().err
    ended.clear()
    (output / "charts").mkdir(parents=True)
    (output / "charts/few-shot-of-earlier-runs-average-light.svg").write_text("<svg/>")
    for dataset in ("EmojiSky", "EmojiPlants"):
        for classes in ("base", "new"):
            for seed in (1, 2):
                add(output / "main", "KDPL_CoOp", classes, [4, 6, 5], seed=seed, dataset=dataset)
                add(output / "main", "CoOp", classes, [4, 5, 5], seed=seed, dataset=dataset)
    assert run.main() == 0
    once = (docs / "benchmark.md").read_text()
    assert (
        re.search(r"(?s)A\n<!-- claims: begin -->.*KDPL_CoOp minus CoOp.*B\n.*\| average +\| CoOp .*C\n", once)
        and "old" not in once
    )
    readme = (tmp_path / "README.md").read_text()
    row = re.search(r"\| \(b\) +\| KDPL minus labels +\| new +\| \+4\.2 to \+4\.2 +\|.*\n", readme)
    assert row and row[0] in once and "old" not in readme and readme.startswith("Before\n") and readme.endswith("after\n")
    assert "EmojiPlants" in (docs / "benchmark_tables.md").read_text() and "EmojiPlants" not in once
    assert (tmp_path / "claims.csv").read_text() == (output / "claims.csv").read_text()
    assert {path.suffix for path in (output / "charts").iterdir()} == {".svg"}
    pictures = re.findall(r'(?:src|srcset)="(.*?)"', once)
    assert {docs / name for name in pictures} == set((docs / "figures/benchmark").iterdir()) and len(pictures) == 2
    assert run.main() == 0 and (docs / "benchmark.md").read_text() == once
