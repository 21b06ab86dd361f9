"""The fifteen data sets, loaded by their real loaders from miniature copies of CoOp's folder layouts."""

import random
from pathlib import Path

import pytest
from dassl.data.datasets import DATASET_REGISTRY
from dassl.utils import Registry
from support import ROOT
from support.miniatures import BUILDERS, load
from yacs.config import CfgNode

import kdpl.datasets
from kdpl.datasets.coop.catalog import CATALOG
from kdpl.datasets.coop.folder import DamagedDataError, MissingDataError

CONFIGS = ROOT / "configs/datasets"


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """All fifteen miniatures under one root, only to be read."""
    root = tmp_path_factory.mktemp("data")
    return root, {name: build(root) for name, build in BUILDERS.items()}


@pytest.fixture
def eurosat(tmp_path):
    """A root with a miniature EuroSAT that the test may damage."""
    BUILDERS["EuroSAT"](tmp_path)
    return tmp_path


def contents(datums, root) -> list[tuple[str, int, str]]:
    return [(str(Path(d.impath).relative_to(root)), d.label, d.classname) for d in datums]


# --- what is loaded ---


@pytest.mark.parametrize("name", BUILDERS)
def test_class_names_their_order_and_the_list_lengths_are_those_of_the_layout(shared, name):
    root, expected = shared
    dataset = load(root, name)
    assert dataset.classnames == expected[name].classnames
    assert [dataset.lab2cname[label] for label in range(dataset.num_classes)] == expected[name].classnames
    assert (len(dataset.train_x), len(dataset.val or []), len(dataset.test)) == expected[name].sizes


def test_every_name_is_registered_and_has_a_configuration():
    named = {}
    for path in CONFIGS.glob("*.yaml"):
        with path.open() as file:
            named[CfgNode.load_cfg(file).DATASET.NAME] = path
    assert set(BUILDERS) <= set(named)
    assert set(BUILDERS) <= set(DATASET_REGISTRY.registered_names())


def test_a_name_that_a_fork_has_registered_is_left_to_it():
    registry = Registry("DATASET")
    own = type("EuroSAT", (), {})
    registry.register(own)
    kdpl.datasets.register(registry)
    assert registry.get("EuroSAT") is own
    assert registry.get("Food101").facts is CATALOG["Food101"]


# --- few-shot subsets ---


def test_the_few_shot_draw_is_that_of_random_right_after_seeding(shared):
    root, _ = shared
    whole = load(root, "EuroSAT")
    random.seed(3)
    expected = []
    for source, shots in ((whole.train_x, 2), (whole.val, 2)):
        groups = {}
        for datum in source:
            groups.setdefault(datum.label, []).append(datum)
        expected.append([d.impath for group in groups.values() for d in random.sample(group, shots)])
    few = load(root, "EuroSAT", NUM_SHOTS=2, seed=3)
    assert [d.impath for d in few.train_x] == expected[0]
    assert [d.impath for d in few.val] == expected[1]
    assert contents(few.test, root) == contents(whole.test, root)


# --- base and new classes ---


def test_base_and_new_classes_are_the_halves_of_all_classes(shared):
    root, expected = shared
    names = expected["OxfordPets"].classnames
    base, new = (load(root, "OxfordPets", SUBSAMPLE_CLASSES=half) for half in ("base", "new"))
    assert base.classnames == names[:2] and new.classnames == names[2:]
    assert len(base.test) + len(new.test) == expected["OxfordPets"].sizes[2]
    for dataset in (base, new):
        for datums in (dataset.train_x, dataset.val, dataset.test):
            assert {d.label for d in datums} == set(range(dataset.num_classes))
            assert all(dataset.lab2cname[d.label] == d.classname for d in datums)


def test_the_subset_is_drawn_before_the_classes_are_halved(shared):
    few = {half: load(shared[0], "EuroSAT", NUM_SHOTS=2, SUBSAMPLE_CLASSES=half) for half in ("all", "base", "new")}
    paths = {half: [d.impath for d in dataset.train_x] for half, dataset in few.items()}
    assert paths["base"] + paths["new"] == paths["all"]


# --- what is missing or damaged ---


@pytest.mark.parametrize("name", BUILDERS)
def test_a_missing_data_set_shows_the_expected_tree_and_the_command_that_fetches_it(tmp_path, name):
    with pytest.raises(MissingDataError) as error:
        load(tmp_path, name)
    message = str(error.value)
    assert f"python -m kdpl.datasets.prepare {name} --root {tmp_path}" in message
    for source in CATALOG[name].sources:
        assert all(path in message for path in source.gives)


def test_a_root_that_is_the_data_set_itself_is_told_so(eurosat):
    with pytest.raises(MissingDataError, match=f"must be the folder above eurosat; try --root {eurosat}"):
        load(eurosat / "eurosat", "EuroSAT")


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("OxfordPets", "split_zhou_OxfordPets.json"),
        ("FGVCAircraft", "images_variant_val.txt"),
        ("ImageNet", "classnames.txt"),
        ("ImageNetA", "classnames.txt"),
    ],
)
def test_a_missing_list_is_named(tmp_path, name, path):
    BUILDERS[name](tmp_path)
    (tmp_path / CATALOG[name].folder / path).unlink()
    with pytest.raises(MissingDataError, match=f"{path} not found in .*(?s:.*)prepare {name}"):
        load(tmp_path, name)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("OxfordPets", "images/egyptian_mau_3.jpg"),
        ("SUN397", "SUN397/a/abbey/sun_1.jpg"),
        ("FGVCAircraft", "images/2000002.jpg"),
    ],
)
def test_a_missing_image_is_named(tmp_path, name, path):
    BUILDERS[name](tmp_path)
    (tmp_path / CATALOG[name].folder / path).unlink()
    named = path.removeprefix(f"{CATALOG[name].images}/")
    with pytest.raises(MissingDataError, match=f"1 of the [0-9,]+ images that are listed are not in .*{named}"):
        load(tmp_path, name)


@pytest.mark.parametrize(
    ("name", "move", "error", "message"),
    [
        ("ImageNet", ("images/train/n02012849", None), MissingDataError, "1 class folders.*n02012849"),
        ("ImageNet", ("images/val/n02012849", "images/val/n00000000"), MissingDataError, "n02012849"),
        ("ImageNet", (None, "images/train/n99999999"), DamagedDataError, "n99999999 that is no class"),
        ("ImageNetSketch", ("images/n01440764", None), MissingDataError, "n01440764"),
        ("ImageNetV2", ("imagenetv2-matched-frequency-format-val/3", None), MissingDataError, "1 class folders.*: 3"),
        ("ImageNetA", ("imagenet-a/n00000040", None), MissingDataError, "199 class folders, 200 expected"),
        ("ImageNetA", ("imagenet-a/n00000040", "imagenet-a/n00000001"), DamagedDataError, "no name for .* n00000001"),
    ],
)
def test_class_folders_that_do_not_fit_the_class_names_are_named(tmp_path, name, move, error, message):
    BUILDERS[name](tmp_path)
    top = tmp_path / CATALOG[name].folder
    old, new = move
    if old is None:
        (top / new).mkdir()
    else:
        (top / old).rename(top / new if new else tmp_path / "elsewhere")
    with pytest.raises(error, match=message):
        load(tmp_path, name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON.*Delete it and fetch it again"),
        ("<html>Google Drive: sign in</html>", "not valid JSON"),
        ('{"train": [], "val": []}', "expected lists 'train', 'val' and 'test'"),
        ('{"train": [["River/image_0001.jpg", "x", "River"]], "val": [], "test": []}', "is not a split file"),
        ('{"train": [["River/image_0001.jpg", 1, "River"]], "val": [], "test": []}', "no training image has label 0"),
        (
            '{"train": [["River/image_0001.jpg", 0, "A"], ["River/image_0002.jpg", 0, "B"]], "val": [], "test": []}',
            "label 0 is called both 'A' and 'B'",
        ),
        (
            '{"train": [["River/image_0001.jpg", 0, "A"]], "val": [], "test": [["River/image_0002.jpg", 1, "B"]]}',
            "has label 1 and class name 'B'",
        ),
    ],
)
def test_a_malformed_split_file_says_what_is_wrong_with_it(eurosat, text, message):
    (eurosat / "eurosat/split_zhou_EuroSAT.json").write_text(text)
    with pytest.raises(DamagedDataError, match=f"(?s)EuroSAT: .*{message}"):
        load(eurosat, "EuroSAT")
