"""The report's tables, from trees of results whose numbers are worked out by hand."""

import csv
import io
import json
from pathlib import Path

import pytest

from kdpl.config.manifest import Manifest
from kdpl.experiments.report.cells import Cell, difference, harmonic_mean
from kdpl.experiments.report.formats import render
from kdpl.experiments.report.runs import read_scores
from kdpl.experiments.report.tables import Row, Table, all_tables
from kdpl.report import main
from kdpl.training.results import write_results


def add(
    folder: Path,
    dataset: str,
    accuracy: float,
    classes: str = "all",
    *,
    trainer: str = "CoOp",
    backbone: str = "ViT-B/32",
    seed: int = 1,
    shots: int = 16,
    split: str = "test",
    teacher: str | None = None,
    class_agnostic: bool = False,
    domains: tuple[str, str] | None = None,
    model_dir: str | None = None,
    trained_on: str = "",
    config_name: str = "",
    manifest: dict | None = None,
) -> None:
    source, target = domains or ("", "")
    run = {
        "trainer": trainer,
        "backbone": backbone,
        "teacher": teacher or ("ViT-H-14-quickgelu" if trainer.startswith("KDPL") else None),
        "class_agnostic": class_agnostic,
        "seed": seed,
        "shots": shots,
        "config": {
            "DATASET": {"NAME": trained_on or dataset, "SUBSAMPLE_CLASSES": classes, "SOURCE_DOMAINS": [source][: bool(source)]}
        },
        "config_name": config_name,
        "model_dir": model_dir and str(model_dir),
        "manifest": manifest,
    }
    result = {
        "dataset": dataset,
        "split": split,
        "classes": classes,
        "source_domains": [source] if source else [],
        "target_domains": [target] if target else [],
        "num_classes": 10,
        "num_images": 100,
        "accuracy": accuracy,
        "error_rate": 100 - accuracy,
        "macro_f1": accuracy,
    }
    write_results(folder, run, result)


def add_base_to_new(root: Path, dataset: str, base: float, new: float | None, seed: int = 1, **run) -> None:
    method = run.get("trainer", "CoOp") + ("-CA" if run.get("class_agnostic") else "")
    common = f"{dataset}/shots_16/{method}/vit_b32_ctxv1/seed{seed}"
    add(root / "base2new/train_base" / common, dataset, base, "base", seed=seed, **run)
    if new is not None:
        trained = root / "base2new/train_base" / common
        add(root / "base2new/test_new" / common, dataset, new, "new", seed=seed, model_dir=trained, **run)


def tables(root: Path, seeds: tuple[int, ...] = (), split: str = "test") -> dict[str, Table]:
    return {table.title: table for table in all_tables(read_scores([root], split)[0], seeds)}


def texts(table: Table) -> dict[tuple[str, ...], list[str]]:
    return {
        row.labels: ["—" if c is None else c.text(table.seeds, row.kind == "difference") for c in row.cells]
        for row in table.rows
    }


B2N = "Base-to-new: student ViT-B/32, 16 shots"


# ---------------------------------------------------------------------------------------------------------- numbers


def test_names_in_a_table_give_a_terminal_no_orders():
    row = Row(("bad\x1b[2J\nname",), (None,))
    text = render([Table("base-to-new", "student \x1b[8m", ("data set",), ("base",), (1,), [row])], "terminal")
    assert "\x1b" not in text and r"bad\x1b[2J\nname" in text and r"student \x1b[8m" in text


def test_harmonic_mean_is_that_of_the_two_means():
    h = harmonic_mean(Cell({1: 80.0, 2: 60.0}), Cell({1: 40.0, 2: 60.0}))
    assert h.mean == pytest.approx(2 * 70 * 50 / 120)  # 58.33, not the mean of 53.33 and 60
    assert h.std == pytest.approx((60 - 2 * 80 * 40 / 120) / 2)


def test_a_difference_of_harmonic_means_takes_the_common_seeds_of_both_in_one_way():
    more = harmonic_mean(Cell({1: 80.0, 2: 60.0, 3: 10.0}), Cell({1: 40.0, 2: 60.0, 3: 90.0}))
    less = harmonic_mean(Cell({1: 50.0, 2: 70.0}), Cell({1: 60.0, 2: 20.0}))
    of_the_means = 2 * 70 * 50 / 120 - 2 * 60 * 40 / 100
    assert difference(more, less).mean == pytest.approx(of_the_means)
    assert difference(less, more).mean == pytest.approx(-of_the_means)


# ------------------------------------------------------------------------------------------------------ base-to-new


def test_base_to_new_over_three_seeds_beside_the_supervised_twin(tmp_path):
    for seed, base, new in ((1, 80.0, 60.0), (2, 82.0, 62.0), (3, 84.0, 64.0)):
        add_base_to_new(tmp_path, "OxfordPets", base, new, seed)
        add_base_to_new(tmp_path, "OxfordPets", base - 1, new + 3, seed, trainer="KDPL_CoOp")
    table = tables(tmp_path)[B2N]
    assert table.columns == ("base", "new", "H")
    assert texts(table) == {
        # 2 * 82 * 62 / 144 = 70.61; by seed 68.57, 70.61, 72.65. KDPL: 2 * 81 * 65 / 146 = 72.12
        ("OxfordPets", "CoOp"): ["82.00 ± 1.63", "62.00 ± 1.63", "70.61 ± 1.66"],
        ("OxfordPets", "KDPL_CoOp"): ["81.00 ± 1.63", "65.00 ± 1.63", "72.12 ± 1.65"],
        ("OxfordPets", "minus CoOp"): ["-1.00 ± 0.00", "+3.00 ± 0.00", "+1.51 ± 0.01"],
    }


def test_the_average_over_data_sets_comes_first_and_its_h_is_of_the_averages(tmp_path):
    add_base_to_new(tmp_path, "EuroSAT", 90.0, 50.0)
    add_base_to_new(tmp_path, "Caltech101", 96.0, 94.0)
    rows = texts(tables(tmp_path)[B2N])
    assert [labels[0] for labels in rows] == ["average", "Caltech101", "EuroSAT"]
    assert rows["average", "CoOp"] == ["93.00", "72.00", "81.16"]  # 2 * 93 * 72 / 165


def test_a_missing_seed_is_marked(tmp_path):
    for seed in (1, 2, 3):
        add_base_to_new(tmp_path, "DTD", 70.0 + seed, None if seed == 2 else 50.0 + seed, seed)
    table = tables(tmp_path)[B2N]
    base, new, h = texts(table)["DTD", "CoOp"]
    assert base == "72.00 ± 0.82"
    assert new == "52.00 ± 1.00 (2/3 seeds)"
    assert h.endswith("(2/3 seeds)")
    assert table.rows[0].cells[2].mean == pytest.approx(2 * 72 * 52 / 124)  # base of seeds 1 and 3 only


def test_zero_shot_rows_need_no_seed_and_no_training(tmp_path):
    for seed in (1, 2):
        add_base_to_new(tmp_path, "DTD", 70.0 + seed, 50.0, seed)
    add_base_to_new(tmp_path, "DTD", 60.0, 55.0, trainer="ZeroshotCLIP")
    add_base_to_new(tmp_path, "EuroSAT", 10.0, 10.0, trainer="ZeroshotCLIP")  # where nothing is trained: not shown
    rows = texts(tables(tmp_path)[B2N])
    assert rows["DTD", "ZeroshotCLIP"] == ["60.00", "55.00", "57.39"]
    assert {labels[0] for labels in rows} == {"DTD"}


def test_settings_of_the_same_trainer_are_told_apart_and_find_their_twin(tmp_path):
    for trainer in ("CoOp", "KDPL_CoOp"):
        for config in ("a", "b"):
            folder = tmp_path / f"base2new/train_base/dtd/shots_16/{trainer}/{config}/seed1"
            add(folder, "DTD", 70.0 if config == "a" else 60.0, "base", trainer=trainer, config_name=config)
    assert [row.labels[1] for row in tables(tmp_path)[B2N].rows] == [
        "CoOp (a)",
        "CoOp (b)",
        "KDPL_CoOp (a)",
        "minus CoOp (a)",
        "KDPL_CoOp (b)",
        "minus CoOp (b)",
    ]


def test_validation_results_stay_out_of_the_table_of_test_results(tmp_path):
    add(tmp_path, "DTD", 99.0, "base", split="val")
    add(tmp_path, "DTD", 70.0, "base")
    assert texts(tables(tmp_path)[B2N])["DTD", "CoOp"][0] == "70.00"
    assert texts(tables(tmp_path, split="val")[B2N])["DTD", "CoOp"][0] == "99.00"


# ------------------------------------------------------------------------------- cross-dataset, domain generalisation


def add_transfer(root: Path, source: str, folder: str, scores: dict[str, float], **run) -> None:
    tail = f"{run.get('trainer', 'CoOp')}/vit_b32_ctxv1_16shots/seed{run.get('seed', 1)}"
    for dataset, accuracy in scores.items():
        trained = {} if dataset == source else {"model_dir": root / source / tail}
        add(root / (folder if trained else source) / tail, dataset, accuracy, **trained, **run)


def test_transfer_from_imagenet_makes_two_tables(tmp_path):
    scores = {"ImageNet": 66.0, "DTD": 40.0, "Food101": 80.0, "ImageNetV2": 58.0, "ImageNetR": 66.0}
    add_transfer(tmp_path, "ImageNet", "evaluation", scores)
    found = tables(tmp_path)
    subject = "student ViT-B/32, source ImageNet, 16 shots"
    assert list(found) == [f"Cross-dataset: {subject}", f"Domain generalisation: {subject}"]
    cross, shift = found.values()
    assert cross.columns == ("ImageNet (source)", "Food101", "DTD", "average")
    assert texts(cross)["CoOp",] == ["66.00", "80.00", "40.00", "60.00"]
    assert shift.columns == ("ImageNet (source)", "ImageNetV2", "ImageNetR", "average")
    assert texts(shift)["CoOp",] == ["66.00", "58.00", "66.00", "62.00"]


def test_the_domains_of_the_embedded_benchmark_are_those_of_its_source_alone(tmp_path):
    scores = {"EmojiAll": 30.0, "EmojiSky": 40.0, "EmojiR": 20.0, "EmojiV2": 25.0, "EmojiA": 5.0, "EmojiSketch": 10.0}
    add_transfer(tmp_path, "EmojiAll", "evaluation_emoji_all", scores)
    cross, shift = tables(tmp_path).values()
    assert cross.columns == ("EmojiAll (source)", "EmojiSky", "average")
    assert shift.columns == ("EmojiAll (source)", "EmojiV2", "EmojiSketch", "EmojiA", "EmojiR", "average")
    add_transfer(tmp_path / "other", "EmojiSky", "evaluation_emoji_sky", {"EmojiSky": 40.0, "EmojiR": 20.0})
    (cross,) = tables(tmp_path / "other").values()
    assert cross.columns == ("EmojiSky (source)", "EmojiR", "average") and cross.protocol == "cross-dataset"


def test_a_test_of_prompts_is_no_training_whichever_of_the_two_paths_is_relative(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed, trained, given in ((1, "a/1", tmp_path / "a/1"), (2, tmp_path / "a/2", "a/2")):
        add(trained, "EmojiMeals", 50.0, seed=seed, trained_on="EmojiMeals")
        add(f"b/{seed}", "EmojiVehicles", 20.0, seed=seed, model_dir=str(given))
    add("b/3", "EmojiVehicles", 90.0, seed=3, model_dir="not/given")
    monkeypatch.chdir("/")
    scores, (note,) = read_scores([tmp_path])
    (table,) = all_tables(scores)
    assert table.title == "Cross-dataset: student ViT-B/32, source EmojiMeals, 16 shots"
    assert texts(table)["CoOp",] == ["50.00 ± 0.00", "20.00 ± 0.00", "20.00 ± 0.00"]
    assert f"{tmp_path}/b/3" in note and "what these were trained on is not known: give that folder too" in note


def test_training_on_one_style_and_testing_on_the_other_is_domain_generalisation(tmp_path):
    add(tmp_path / "1", "EmojiMeals", 50.0, domains=("twemoji", "twemoji"))
    add(tmp_path / "2", "EmojiMeals", 40.0, domains=("twemoji", "fluent"), model_dir=tmp_path / "1")
    (table,) = tables(tmp_path).values()
    assert table.protocol == "domain generalisation"
    assert table.columns == ("EmojiMeals (twemoji) (source)", "EmojiMeals (fluent)", "average")
    assert texts(table)["CoOp",] == ["50.00", "40.00", "40.00"]


# --------------------------------------------------------------------------------------------------------- few-shot


def test_few_shot_columns_are_the_shots_with_zero_shot_first(tmp_path):
    for shots, accuracy in ((16, 60.0), (1, 40.0), (4, 50.0)):
        add(tmp_path / f"DTD/CoOp/x_{shots}shots/seed1", "DTD", accuracy, shots=shots)
    add(tmp_path / "DTD/KDPL_CoOp/x_4shots/seed1", "DTD", 52.0, shots=4, trainer="KDPL_CoOp")
    add(tmp_path / "DTD/ZeroshotCLIP/x_16shots/seed1", "DTD", 35.0, trainer="ZeroshotCLIP")
    (table,) = tables(tmp_path).values()
    assert table.columns == ("0", "1", "4", "16")
    assert texts(table) == {
        ("DTD", "ZeroshotCLIP"): ["35.00", "—", "—", "—"],
        ("DTD", "CoOp"): ["—", "40.00", "50.00", "60.00"],
        ("DTD", "KDPL_CoOp"): ["—", "—", "52.00", "—"],
        ("DTD", "minus CoOp"): ["—", "—", "+2.00", "—"],
    }


# ------------------------------------------------------------------------------------------------ files and printing


def test_a_damaged_file_is_named_and_the_rest_reported(tmp_path, capsys):
    add_base_to_new(tmp_path, "DTD", 70.0, 50.0)
    add(tmp_path / "broken", "DTD", 70.0, "base", seed=2)
    (tmp_path / "broken" / "results.json").write_text('{"schema": 1, "tra')
    assert main([str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert "70.00" in out
    assert "broken/results.json' is damaged" in err


def test_of_two_results_for_the_same_the_newer_counts_and_it_is_said(tmp_path, capsys):
    for name, time, accuracy in (("a", "2026-01-02", 80.0), ("b", "2026-01-01", 10.0)):
        add(tmp_path / name, "DTD", accuracy, "base")
        content = json.loads((tmp_path / name / "results.json").read_text())
        content["results"][0]["time"] = time
        (tmp_path / name / "results.json").write_text(json.dumps(content))
    assert main([str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert "80.00" in out
    assert "Two results for the same" in err


def test_folders_without_runs_are_an_error_that_names_them(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert f"There is no results.json under '{tmp_path}'" in capsys.readouterr().err
    assert main([str(tmp_path / "nowhere")]) == 2
    assert "There is no folder" in capsys.readouterr().err


def filled(root: Path) -> str:
    for seed in (1, 2):
        add_base_to_new(root, "OxfordPets", 80.0 + seed, 60.0, seed)
        add_base_to_new(root, "OxfordPets", 80.0, 62.0 + seed, seed, trainer="KDPL_CoOp")
    return str(root)


def test_latex_is_escaped(tmp_path, capsys):
    assert main([filled(tmp_path), "--format", "latex"]) == 0
    body = capsys.readouterr().out.split(r"\midrule")[1]
    assert r"KDPL\_CoOp" in body and "81.50 ± 0.50" in body
    assert body.index(r"\bottomrule") < body.index(r"\end{tabular}")


def test_csv_has_numbers_for_every_cell(tmp_path, capsys):
    assert main([filled(tmp_path), "--format", "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert len(rows) == 9
    cell = next(r for r in rows if (r["method"], r["column"]) == ("CoOp", "base"))
    assert (cell["mean"], cell["std"], cell["seeds"], cell["expected_seeds"]) == ("81.5000", "0.5000", "2", "2")
    assert cell["dataset"] == "OxfordPets"


def test_a_cell_never_mixes_manifests_that_differ_in_more_than_the_seed(tmp_path, capsys):
    config = {"DATASET.NUM_SHOTS": 1}

    def finished(name, seed, lr, accuracy):
        manifest = Manifest({**config, "SEED": seed, "OPTIM.LR": lr}, {"training images": f"1 ({seed})"}) if lr else None
        add(tmp_path / name, "EmojiMeals", accuracy, seed=seed, manifest=manifest and manifest.to_dict())

    finished("a", 1, 0.1, 40.0)
    finished("b", 2, 0.1, 50.0)
    scores, notes = read_scores([tmp_path])
    assert {s.method.recipe for s in scores} == {""} and not notes, "seeds of one recipe share a row"
    finished("c", 3, 0.2, 90.0)
    finished("d", 4, None, 20.0)
    finished("a/before-1", 5, 0.9, 1.0)
    scores, notes = read_scores([tmp_path])
    assert len(scores) == 4 and len({s.method for s in scores}) == 3
    assert any("runs with different manifests, in rows of their own" in note for note in notes)
    assert main([str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "45.0" in printed and "90.0" in printed and "60.0" not in printed and "no manifest" in printed
