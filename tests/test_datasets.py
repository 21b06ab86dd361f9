"""The fifteen data sets, loaded by their real loaders from miniature copies of CoOp's folder layouts."""

import json
import multiprocessing
import pickle
import random
import sys
import warnings
from pathlib import Path

import pytest
from dassl.data.datasets import DATASET_REGISTRY, build_dataset
from dassl.utils import Registry, read_image
from dataset_miniatures import BUILDERS, config, load
from yacs.config import CfgNode

import kdpl.datasets
from kdpl.datasets.coop.catalog import CATALOG
from kdpl.datasets.coop.folder import DamagedDataError, MissingDataError

CONFIGS = Path(__file__).parents[1] / "configs/datasets"
MADE = [name for name, facts in CATALOG.items() if facts.split_address]


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


def publish(root, name: str, split: dict) -> Path:
    path = root / CATALOG[name].folder / f"split_zhou_{name}.json"
    path.write_text(json.dumps(split))
    return path


# --- what is loaded ---


@pytest.mark.parametrize("name", BUILDERS)
def test_class_names_their_order_and_the_list_lengths_are_those_of_the_layout(shared, name):
    root, expected = shared
    dataset = load(root, name)
    assert dataset.classnames == expected[name].classnames
    assert [dataset.lab2cname[label] for label in range(dataset.num_classes)] == expected[name].classnames
    assert (len(dataset.train_x), len(dataset.val or []), len(dataset.test)) == expected[name].sizes


@pytest.mark.parametrize("name", BUILDERS)
def test_every_list_names_images_that_open(shared, name):
    dataset = load(shared[0], name)
    for datums in (dataset.train_x, dataset.val, dataset.test):
        assert not datums or read_image(datums[-1].impath).size == (8, 8)


@pytest.mark.parametrize("name", [n for n in BUILDERS if n not in ("ImageNet",) and not CATALOG[n].test_only])
def test_training_validation_and_test_images_are_disjoint(shared, name):
    dataset = load(shared[0], name)
    paths = [d.impath for d in (*dataset.train_x, *dataset.val, *dataset.test)]
    assert len(paths) == len(set(paths))


def test_imagenet_validates_on_its_test_images(shared):
    dataset = load(shared[0], "ImageNet")
    assert dataset.val == dataset.test


def test_a_label_of_a_file_is_the_label_its_annotation_gives(shared):
    root, _ = shared
    flowers = {
        Path(d.impath).name: d for part in ("train_x", "val", "test") for d in getattr(load(root, "OxfordFlowers"), part)
    }
    assert flowers["image_00001.jpg"].label == 101
    assert flowers["image_00102.jpg"].classname == "pink primrose"
    aircraft = load(root, "FGVCAircraft").test
    assert {d.classname for d in aircraft if Path(d.impath).name == "3000002.jpg"} == {"F-16A/B"}


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


# --- split files ---


@pytest.mark.parametrize("name", MADE)
def test_the_published_split_decides_when_it_is_there(shared, tmp_path, name):
    root, _ = shared
    facts = CATALOG[name]
    made = load(root, name)
    first = {label: d for d in reversed(made.train_x) if (label := d.label) < 3}
    top = root / facts.folder / facts.images
    rows = [[str(Path(first[y].impath).relative_to(top)), y, f"published name {y}"] for y in range(3)]
    folder = tmp_path / facts.folder
    folder.mkdir()
    for source in facts.sources:
        if not source.only_without_split:
            (folder / source.gives[0]).symlink_to(root / facts.folder / source.gives[0])
    publish(tmp_path, name, {"train": rows, "val": rows[:2], "test": rows})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset = build_dataset(config(tmp_path, name))
    assert dataset.classnames == ["published name 0", "published name 1", "published name 2"]
    assert contents(dataset.val, folder / facts.images) == [tuple(row) for row in rows[:2]]
    assert not list(folder.glob("split_kdpl_*"))


@pytest.mark.parametrize("name", MADE)
def test_a_split_that_had_to_be_made_is_warned_of_each_time_it_is_used(shared, name):
    for _ in range(2):
        with pytest.warns(UserWarning, match=f"not be comparable.*split_zhou_{name}.json.*{CATALOG[name].split_address}"):
            build_dataset(config(shared[0], name))
    assert (shared[0] / CATALOG[name].folder / f"split_kdpl_{name}.json").is_file()


@pytest.mark.parametrize("name", ["EuroSAT", "OxfordPets"])
def test_a_made_split_does_not_depend_on_the_state_of_the_run(tmp_path, name):
    lists = []
    for seed in (1, 2):
        root = tmp_path / str(seed)
        BUILDERS[name](root)
        random.seed(seed)
        dataset = load(root, name, seed=seed)
        lists.append([contents(part, root) for part in (dataset.train_x, dataset.val, dataset.test)])
    assert lists[0] == lists[1]


def test_a_made_split_stays_as_it_was_when_images_are_added(eurosat):
    before = load(eurosat, "EuroSAT")
    river = eurosat / "eurosat/2750/River"
    (river / "image_0000.jpg").hardlink_to(river / "image_0001.jpg")
    assert contents(load(eurosat, "EuroSAT").test, eurosat) == contents(before.test, eurosat)


def test_a_made_split_tells_how_many_images_the_whole_data_set_would_have(eurosat):
    with pytest.warns(UserWarning, match="It has 100 images, the whole data set 27,000"):
        build_dataset(config(eurosat, "EuroSAT"))


def test_labels_of_a_split_file_may_be_digits_in_quotes(eurosat):
    publish(eurosat, "EuroSAT", {"train": [["River/image_0001.jpg", "0", "River"]], "val": [], "test": []})
    assert load(eurosat, "EuroSAT").lab2cname == {0: "River"}


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


@pytest.mark.parametrize("name", [n for n in BUILDERS if not CATALOG[n].test_only])
def test_every_class_gives_as_many_images_as_there_are_shots(shared, name):
    few = load(shared[0], name, NUM_SHOTS=1)
    assert sorted(d.label for d in few.train_x) == list(range(few.num_classes))


def test_a_class_with_fewer_images_than_shots_gives_all_it_has(shared):
    root, expected = shared
    few = load(root, "EuroSAT", NUM_SHOTS=16)
    assert len(few.train_x) == expected["EuroSAT"].sizes[0]


def test_validation_takes_at_most_four_shots(tmp_path):
    BUILDERS["EuroSAT"](tmp_path)
    rows = [[f"River/image_{i:04d}.jpg", 0, "River"] for i in range(1, 11)]
    publish(tmp_path, "EuroSAT", {"train": rows, "val": rows, "test": rows})
    few = load(tmp_path, "EuroSAT", NUM_SHOTS=8)
    assert (len(few.train_x), len(few.val), len(few.test)) == (8, 4, 10)


@pytest.mark.parametrize("name", [n for n in BUILDERS if CATALOG[n].test_only])
def test_shots_do_not_change_a_data_set_for_testing(shared, name):
    root, expected = shared
    dataset = load(root, name, NUM_SHOTS=1)
    assert len(dataset.test) == len(dataset.train_x) == expected[name].sizes[2]
    assert not (root / CATALOG[name].folder / "split_fewshot").exists()


def test_a_kept_subset_is_used_again_whatever_the_state_of_random(eurosat):
    first = load(eurosat, "EuroSAT", NUM_SHOTS=2)
    random.seed(99)
    again = load(eurosat, "EuroSAT", NUM_SHOTS=2)
    assert contents(first.train_x, eurosat) == contents(again.train_x, eurosat)
    assert len(list((eurosat / "eurosat/split_fewshot").iterdir())) == 1


def test_drawing_a_subset_leaves_the_state_of_random_alone(eurosat):
    random.seed(5)
    expected = random.random()
    for _ in ("drawn", "read from the cache"):
        random.seed(5)
        load(eurosat, "EuroSAT", NUM_SHOTS=2)
        assert random.random() == expected


def test_subsets_differ_between_seeds_and_shots(eurosat):
    subsets = {
        tuple(contents(load(eurosat, "EuroSAT", NUM_SHOTS=shots, seed=seed).train_x, eurosat))
        for shots in (1, 2)
        for seed in (1, 2, 3)
    }
    assert len(subsets) == 6


def test_a_subset_of_another_training_list_is_not_taken_for_one_of_this(eurosat):
    load(eurosat, "EuroSAT", NUM_SHOTS=1)
    rows = [[f"River/image_{i:04d}.jpg", 0, "River"] for i in range(1, 11)]
    publish(eurosat, "EuroSAT", {"train": rows[:5], "val": rows[5:7], "test": rows[7:]})
    few = load(eurosat, "EuroSAT", NUM_SHOTS=1)
    assert few.classnames == ["River"] and len(few.train_x) == 1


@pytest.mark.parametrize(
    "damage",
    [
        "",
        "{",
        "[]",
        '{"train": [["River/../x.jpg", 0, "River"]], "val": [], "test": []}',
        '{"train": [], "val": [], "test": []}',
    ],
)
def test_a_damaged_subset_file_is_drawn_again(eurosat, damage):
    first = load(eurosat, "EuroSAT", NUM_SHOTS=2)
    (kept,) = (eurosat / "eurosat/split_fewshot").iterdir()
    whole = kept.read_text()
    kept.write_text(damage)
    assert contents(load(eurosat, "EuroSAT", NUM_SHOTS=2).train_x, eurosat) == contents(first.train_x, eurosat)
    assert kept.read_text() == whole


def test_the_pickles_of_the_forks_are_never_opened(eurosat):
    trap = eurosat / "trap"

    class Trap:
        def __reduce__(self):
            return Path.touch, (trap,)

    folder = eurosat / "eurosat/split_fewshot"
    folder.mkdir()
    (folder / "shot_2-seed_1.pkl").write_bytes(pickle.dumps(Trap()))
    load(eurosat, "EuroSAT", NUM_SHOTS=2)
    assert not trap.exists()


def test_a_run_without_a_seed_keeps_no_subset(eurosat):
    load(eurosat, "EuroSAT", NUM_SHOTS=2, seed=-1)
    assert not (eurosat / "eurosat/split_fewshot").exists()


def test_a_data_folder_that_cannot_be_written_to_is_no_obstacle(eurosat):
    expected = contents(load(eurosat, "EuroSAT", NUM_SHOTS=2).train_x, eurosat)
    (kept,) = (eurosat / "eurosat/split_fewshot").iterdir()
    kept.unlink()
    kept.parent.rmdir()
    kept.parent.write_text("a file where the folder would be")
    assert contents(load(eurosat, "EuroSAT", NUM_SHOTS=2).train_x, eurosat) == expected


def _load_at_once(root, barrier, results):
    barrier.wait()
    results.put(contents(load(root, "EuroSAT", NUM_SHOTS=2).train_x, root))


def test_runs_started_at_the_same_time_get_the_same_subset(eurosat):
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(4), context.Queue()
    runs = [context.Process(target=_load_at_once, args=(eurosat, barrier, results)) for _ in range(4)]
    for run in runs:
        run.start()
    lists = [results.get(timeout=60) for _ in runs]
    for run in runs:
        run.join()
    assert all(subset == lists[0] for subset in lists)
    assert [p.suffix for p in (eurosat / "eurosat/split_fewshot").iterdir()] == [".json"]
    assert not list((eurosat / "eurosat").glob(".*"))


# --- base and new classes ---


def test_base_and_new_classes_are_the_halves_of_all_classes(shared):
    root, expected = shared
    names = expected["OxfordPets"].classnames
    base, new = (load(root, "OxfordPets", SUBSAMPLE_CLASSES=half) for half in ("base", "new"))
    assert base.classnames == names[:19] and new.classnames == names[19:]
    assert len(base.test) + len(new.test) == expected["OxfordPets"].sizes[2]
    for dataset in (base, new):
        for datums in (dataset.train_x, dataset.val, dataset.test):
            assert {d.label for d in datums} == set(range(dataset.num_classes))
            assert all(dataset.lab2cname[d.label] == d.classname for d in datums)


def test_the_subset_is_drawn_before_the_classes_are_halved(shared):
    few = {half: load(shared[0], "EuroSAT", NUM_SHOTS=2, SUBSAMPLE_CLASSES=half) for half in ("all", "base", "new")}
    paths = {half: [d.impath for d in dataset.train_x] for half, dataset in few.items()}
    assert paths["base"] + paths["new"] == paths["all"]


def test_an_unknown_half_names_the_closest(shared):
    with pytest.raises(ValueError, match=r"SUBSAMPLE_CLASSES 'bsae'.*Did you mean 'base'"):
        load(shared[0], "EuroSAT", SUBSAMPLE_CLASSES="bsae")


# --- what is missing or damaged ---


@pytest.mark.parametrize("name", BUILDERS)
def test_a_missing_data_set_shows_the_expected_tree_and_the_command_that_fetches_it(tmp_path, name):
    with pytest.raises(MissingDataError) as error:
        load(tmp_path, name)
    message = str(error.value)
    assert f"python -m kdpl.datasets.prepare {name} --root {tmp_path}" in message
    for source in CATALOG[name].sources:
        assert all(path in message for path in source.gives)


def test_a_missing_data_set_is_found_out_before_anything_else_is_done(eurosat):
    kdpl.datasets.dataset_dir_check(config(eurosat, "EuroSAT"))
    kdpl.datasets.dataset_dir_check(config(eurosat, "SomebodyElses"))
    with pytest.raises(MissingDataError, match="Food101: images not found"):
        kdpl.datasets.dataset_dir_check(config(eurosat, "Food101"))
    assert [p.name for p in (eurosat / "eurosat").iterdir()] == ["2750"]


def test_a_root_that_is_the_data_set_itself_is_told_so(eurosat):
    with pytest.raises(MissingDataError, match=f"must be the folder above eurosat; try --root {eurosat}"):
        load(eurosat / "eurosat", "EuroSAT")


def test_a_root_that_does_not_exist_is_told_so(tmp_path):
    with pytest.raises(MissingDataError, match="nowhere is not a folder"):
        load(tmp_path / "nowhere", "EuroSAT")


def test_a_folder_of_a_similar_name_is_pointed_out(eurosat):
    (eurosat / "eurosat").rename(eurosat / "EuroSAT_RGB")
    (eurosat / "caltech101").mkdir()
    with pytest.raises(MissingDataError, match="There is a folder 'caltech101': is it this one, misnamed"):
        load(eurosat, "Caltech101")


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("OxfordPets", "annotations/test.txt"),
        ("StanfordCars", "devkit/cars_meta.mat"),
        ("OxfordFlowers", "cat_to_name.json"),
        ("SUN397", "Testing_01.txt"),
        ("UCF101", "ucfTrainTestlist/classInd.txt"),
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
        ("OxfordPets", "images/Egyptian_Mau_3.jpg"),
        ("StanfordCars", "cars_test/00007.jpg"),
        ("OxfordFlowers", "jpg/image_00017.jpg"),
        ("SUN397", "SUN397/c/church/indoor/sun_1.jpg"),
        ("UCF101", "UCF-101-midframes/Yo_Yo/v_YoYo_g01_c01.jpg"),
        ("FGVCAircraft", "images/2000002.jpg"),
    ],
)
def test_a_missing_image_is_named(tmp_path, name, path):
    BUILDERS[name](tmp_path)
    (tmp_path / CATALOG[name].folder / path).unlink()
    named = path.removeprefix(f"{CATALOG[name].images}/")
    with pytest.raises(MissingDataError, match=f"1 of the [0-9,]+ images named in .* are not in .*{named}"):
        load(tmp_path, name)


def test_a_missing_folder_of_images_counts_all_of_them(eurosat):
    load(eurosat, "EuroSAT")
    (eurosat / "eurosat/2750/River").rename(eurosat / "elsewhere")
    with pytest.raises(MissingDataError, match=r"10 of the 100 images named in split_kdpl_EuroSAT.json.*River/image"):
        load(eurosat, "EuroSAT")


def test_no_split_is_made_of_a_part_of_the_classes(eurosat):
    (eurosat / "eurosat/2750/River").rename(eurosat / "elsewhere")
    with pytest.raises(MissingDataError, match="holds 9 class folders, 10 expected"):
        load(eurosat, "EuroSAT")
    assert not list((eurosat / "eurosat").glob("split_*"))


def test_no_split_is_made_of_shortened_lists(tmp_path):
    BUILDERS["OxfordPets"](tmp_path)
    for name in ("trainval.txt", "test.txt"):
        path = tmp_path / "oxford_pets/annotations" / name
        path.write_text("".join(line for line in path.open() if "Breed_33" not in line))
    with pytest.raises(MissingDataError, match="36 classes, 37 expected"):
        load(tmp_path, "OxfordPets")


def test_a_class_too_small_to_be_divided_is_named(eurosat):
    for image in list((eurosat / "eurosat/2750/SeaLake").iterdir())[1:]:
        image.unlink()
    with pytest.raises(MissingDataError, match="class 'Sea or Lake' has 1 images"):
        load(eurosat, "EuroSAT")


def test_a_class_folder_without_images_is_named(tmp_path):
    BUILDERS["ImageNetR"](tmp_path)
    folder = next((tmp_path / "imagenet-rendition/imagenet-r").glob("n*"))
    next(folder.iterdir()).rename(folder / "notes.txt")
    with pytest.raises(MissingDataError, match=f"{folder} holds no image"):
        load(tmp_path, "ImageNetR")


def test_validation_images_that_lie_in_one_heap_are_told_from_class_folders(tmp_path):
    BUILDERS["ImageNet"](tmp_path)
    val = tmp_path / "imagenet/images/val"
    for folder in list(val.iterdir()):
        for image in list(folder.iterdir()):
            image.rename(val / f"{folder.name}_{image.name}")
        folder.rmdir()
    with pytest.raises(MissingDataError, match=f"6 class folders that classnames.txt names are not in {val}"):
        load(tmp_path, "ImageNet")


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
        ("{", "not valid JSON.*Download it again from https://drive.google.com"),
        ("<html>Google Drive: sign in</html>", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", "expected the lists 'train', 'val' and 'test'"),
        ('{"train": [], "val": []}', "expected the lists"),
        ('{"train": [], "val": [], "test": []}', "training list is empty"),
        ('{"train": [["River/image_0001.jpg", 0]], "val": [], "test": []}', "entry 1 of 'train' is"),
        ('{"train": [["River/image_0001.jpg", "x", "River"]], "val": [], "test": []}', "entry 1 of 'train'"),
        ('{"train": [["River/image_0001.jpg", Infinity, "River"]], "val": [], "test": []}', "entry 1 of 'train'"),
        ('{"train": [["/etc/hostname", 0, "River"]], "val": [], "test": []}', "relative to 2750/"),
        ('{"train": [["River/../../../x.jpg", 0, "River"]], "val": [], "test": []}', "relative to 2750/"),
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


def test_a_split_file_that_is_not_text_says_so(eurosat):
    (eurosat / "eurosat/split_zhou_EuroSAT.json").write_bytes(b"\x1f\x8b\xff\xfe")
    with pytest.raises(DamagedDataError, match="not UTF-8 text"):
        load(eurosat, "EuroSAT")


@pytest.mark.parametrize(
    ("name", "path", "line", "message"),
    [
        ("OxfordPets", "annotations/trainval.txt", "Siamese_1", "line 186 is 'Siamese_1'; expected 4 fields"),
        ("OxfordPets", "annotations/trainval.txt", "Siamese_1 x 1 1", "line 186 has 'x' where a number"),
        ("SUN397", "Training_01.txt", "/z/zoo/sun_1.jpg", "line 1192 names the class 'z/zoo', which ClassName.txt"),
        ("UCF101", "ucfTrainTestlist/testlist01.txt", "Nap/v_Nap_g01_c01.avi", "names the class 'Nap'"),
        ("FGVCAircraft", "images_variant_test.txt", "0000000 Zeppelin", "names the class 'Zeppelin'"),
        ("ImageNet", "classnames.txt", "n00000000", "classnames.txt, line 7 is 'n00000000'; expected 2 fields"),
    ],
)
def test_a_malformed_line_of_a_list_is_named(tmp_path, name, path, line, message):
    BUILDERS[name](tmp_path)
    with (tmp_path / CATALOG[name].folder / path).open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(DamagedDataError, match=message):
        load(tmp_path, name)


@pytest.mark.parametrize(
    ("name", "path"), [("StanfordCars", "devkit/cars_train_annos.mat"), ("OxfordFlowers", "imagelabels.mat")]
)
@pytest.mark.parametrize("content", [b"", b"no MATLAB file, but text that is longer than any header of one" * 4])
def test_a_damaged_matlab_file_is_named(tmp_path, name, path, content):
    BUILDERS[name](tmp_path)
    (tmp_path / CATALOG[name].folder / path).write_bytes(content)
    with pytest.raises(DamagedDataError, match=f"{path} cannot be read"):
        load(tmp_path, name)


def test_labels_without_a_name_are_named(tmp_path):
    BUILDERS["OxfordFlowers"](tmp_path)
    path = tmp_path / "oxford_flowers/cat_to_name.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "50"}))
    with pytest.raises(DamagedDataError, match="no name for label 50"):
        load(tmp_path, "OxfordFlowers")


def test_matlab_files_without_scipy_name_both_ways_out(tmp_path, monkeypatch):
    BUILDERS["OxfordFlowers"](tmp_path)
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install scipy.*split_zhou_OxfordFlowers.json"):
        load(tmp_path, "OxfordFlowers")


# --- documentation ---


@pytest.mark.parametrize("name", CATALOG)
def test_the_documentation_gives_folder_sizes_and_addresses_as_the_catalogue_does(name):
    facts = CATALOG[name]
    text = (Path(__file__).parents[1] / "docs/datasets.md").read_text()
    (row,) = [line for line in text.splitlines() if line.startswith(f"| {name} | `")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[2] == f"`{facts.folder}`" and cells[4] == f"{facts.classes:,}"
    assert [f"{size:,}" for size in facts.sizes if size] == [c for c in cells[5:8] if c not in ("", "(test)")]
    assert not facts.split_address or f"| `{facts.folder}/{facts.published_split}` | {facts.split_address} |" in text
