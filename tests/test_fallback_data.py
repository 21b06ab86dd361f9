"""Data sets, transforms, samplers and loaders of the bundled engine."""

import random
from collections import Counter
from pathlib import Path

import fallback_pieces as pieces
import numpy as np
import pytest
import torch
from PIL import Image

# isort: split
from dassl.data import DataManager, DatasetWrapper
from dassl.data.datasets import DatasetBase, Datum, build_dataset
from dassl.data.manager import build_data_loader
from dassl.data.samplers import build_sampler
from dassl.data.transforms import INTERPOLATION_MODES, build_transform

from kdpl.training.batches import EpochLoader


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("colours")
    pieces.make_images(folder)
    return folder


@pytest.fixture
def cfg(root, tmp_path):
    return pieces.small_cfg(root, tmp_path)


@pytest.fixture
def images(root) -> list[Datum]:
    return pieces.read_split(root, "train")


# Data sets


def test_a_datum_cannot_be_changed(images):
    assert (images[8].label, images[8].classname, images[9].domain) == (1, "green", 1)
    for name in ("impath", "label", "domain", "classname"):
        with pytest.raises(AttributeError):
            setattr(images[0], name, 1)


def test_a_datum_needs_an_image_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.jpg.*DATASET\.ROOT"):
        Datum(str(tmp_path / "gone.jpg"))
    with pytest.raises(TypeError, match="str"):
        Datum(tmp_path / "gone.jpg")


def test_class_names_are_in_the_order_of_the_labels(images):
    dataset = DatasetBase(train_x=images[::-1], test=images)
    assert dataset.classnames == ["red", "green", "blue"]
    assert dataset.lab2cname == {0: "red", 1: "green", 2: "blue"}
    assert dataset.num_classes == 3
    assert dataset.train_u is None
    assert dataset.val is None
    assert dataset.test is images


def test_an_empty_or_contradictory_training_set_is_refused(images):
    with pytest.raises(ValueError, match="train_x is empty"):
        DatasetBase(train_x=[])
    with pytest.raises(ValueError, match="Label 0 has two class names, 'red' and 'crimson'"):
        DatasetBase(train_x=[images[0], Datum(images[1].impath, 0, 0, "crimson")])


def test_images_are_grouped_in_the_order_of_appearance(images):
    dataset = DatasetBase(train_x=images)
    assert list(dataset.split_dataset_by_label(images[::-1])) == [2, 1, 0]
    by_domain = dataset.split_dataset_by_domain(images)
    assert {domain: len(items) for domain, items in by_domain.items()} == {0: 12, 1: 12}
    assert all(item.domain == 1 for item in by_domain[1])


def test_shots_are_drawn_class_by_class_with_pythons_random(images):
    dataset = DatasetBase(train_x=images)
    random.seed(3)
    shots = dataset.generate_fewshot_dataset(images, num_shots=2)
    random.seed(3)
    assert shots == [item for start in (0, 8, 16) for item in random.sample(images[start : start + 8], 2)]


def test_several_sources_are_drawn_from_in_turn(images):
    train, val = DatasetBase(train_x=images).generate_fewshot_dataset(images, images[:10], num_shots=4)
    assert Counter(item.label for item in train) == {0: 4, 1: 4, 2: 4}
    assert Counter(item.label for item in val) == {0: 4, 1: 2}


def test_a_small_class_is_taken_whole_or_repeated(images):
    dataset = DatasetBase(train_x=images)
    assert dataset.generate_fewshot_dataset(images[:3], num_shots=5) == images[:3]
    repeated = dataset.generate_fewshot_dataset(images[:3], num_shots=5, repeat=True)
    assert len(repeated) == 5
    assert set(repeated) <= set(images[:3])


def test_without_shots_everything_stays(images):
    dataset = DatasetBase(train_x=images)
    assert dataset.generate_fewshot_dataset(images) is images
    assert list(dataset.generate_fewshot_dataset(images, images[:2], num_shots=0)) == [images, images[:2]]


def test_unknown_data_sets_are_named(cfg):
    cfg.DATASET.NAME = "Colors"
    with pytest.raises(ValueError, match=r"DATASET\.NAME 'Colors' .* 'Colours'"):
        build_dataset(cfg)


# Transforms


def picture(width: int = 40, height: int = 30) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    "names",
    [
        (),
        ("normalize",),
        ("random_resized_crop", "random_flip", "normalize"),
        ("random_translation", "random_flip"),
        ("random_crop", "colorjitter", "randomgrayscale", "gaussian_blur"),
        ("randaugment", "cutout", "gaussian_noise", "normalize"),
        ("center_crop", "normalize"),
    ],
)
@pytest.mark.parametrize("interpolation", INTERPOLATION_MODES)
def test_any_choice_of_transforms_gives_a_tensor_of_the_size(cfg, names, interpolation, capsys):
    cfg.INPUT.SIZE = (24, 16)
    cfg.INPUT.TRANSFORMS = names
    cfg.INPUT.INTERPOLATION = interpolation
    for is_train in (True, False):
        tensor = build_transform(cfg, is_train)(picture())
        assert tensor.shape == (3, 24, 16)
        assert tensor.dtype == torch.float32


def test_test_images_are_resized_at_the_smaller_edge_cropped_and_normalised(cfg, capsys):
    cfg.INPUT.SIZE = (12, 16)
    cfg.INPUT.INTERPOLATION = "bicubic"
    image = picture(40, 30)
    pixels = np.asarray(image.resize((21, 16), Image.Resampling.BICUBIC).crop((2, 2, 18, 14))) / 255
    expected = (pixels - cfg.INPUT.PIXEL_MEAN) / cfg.INPUT.PIXEL_STD
    tensor = build_transform(cfg, is_train=False)(image)
    assert np.allclose(tensor.permute(1, 2, 0), expected, atol=1e-6)


def test_images_are_normalised_only_where_that_is_chosen(cfg, capsys):
    white = Image.new("RGB", (9, 9), "white")
    assert build_transform(cfg, is_train=False, choices=())(white).eq(1).all()
    assert build_transform(cfg, is_train=False, choices=("normalize",))(white).min() > 2


def test_without_augmentation_the_training_image_is_the_whole_image(cfg, capsys):
    halves = Image.new("RGB", (64, 8), "white")
    halves.paste("black", (0, 0, 32, 8))
    columns = build_transform(cfg, choices=())(halves).mean(dim=(0, 1))
    assert columns[0] == 0
    assert columns[-1] == 1


def test_cutout_blanks_one_square_of_at_most_its_side(cfg, capsys):
    cfg.INPUT.SIZE = (20, 20)
    cfg.INPUT.CUTOUT_LEN = 5
    torch.manual_seed(0)
    cutout = build_transform(cfg, choices=("cutout",))
    areas = [int(cutout(Image.new("RGB", (20, 20), "white"))[0].eq(0).sum()) for _ in range(60)]
    assert max(areas) == 25
    assert 6 <= min(areas) < 25  # at the border


def test_cutout_blanks_before_and_noise_comes_after_normalising(cfg, capsys):
    torch.manual_seed(0)
    cfg.INPUT.CUTOUT_LEN = 40
    cfg.INPUT.GN_MEAN, cfg.INPUT.GN_STD = 100.0, 0.0
    black = -torch.tensor(cfg.INPUT.PIXEL_MEAN) / torch.tensor(cfg.INPUT.PIXEL_STD)
    augment = build_transform(cfg, choices=("gaussian_noise", "normalize", "cutout"))
    means = [augment(picture()).mean(dim=(1, 2)) for _ in range(20)]
    assert all(torch.allclose(mean, black) or torch.allclose(mean, black + 100) for mean in means)
    assert any(torch.allclose(mean, black + 100) for mean in means)


def test_noise_and_translation_happen_about_every_second_time(cfg, capsys):
    torch.manual_seed(0)
    cfg.INPUT.SIZE = (16, 16)
    for name in ("gaussian_noise", "random_translation"):
        augment, plain = (build_transform(cfg, choices=names) for names in ((name,), ()))
        image = picture(16, 16)
        changed = sum(not torch.equal(augment(image), plain(image)) for _ in range(60))
        assert 15 < changed < 45


def test_no_transform_is_none(cfg, capsys):
    cfg.INPUT.NO_TRANSFORM = True
    assert build_transform(cfg) is None


def test_unknown_transforms_and_interpolations_are_named(cfg, capsys):
    with pytest.raises(ValueError, match=r"INPUT\.TRANSFORMS 'random_flp' .* 'random_flip'"):
        build_transform(cfg, choices=("random_flp",))
    cfg.INPUT.INTERPOLATION = "bicubik"
    with pytest.raises(ValueError, match=r"INPUT\.INTERPOLATION 'bicubik' .* 'bicubic'"):
        build_transform(cfg, is_train=False)


# Samplers


def test_samplers_go_by_their_names(images):
    assert list(build_sampler("SequentialSampler", data_source=images)) == list(range(24))
    sampler = build_sampler("RandomSampler", data_source=images)
    first, second = list(sampler), list(sampler)
    assert sorted(first) == list(range(24))
    assert first != second
    with pytest.raises(ValueError, match=r"'RandomSample' .* 'RandomSampler'"):
        build_sampler("RandomSample", data_source=images)


@pytest.mark.parametrize("name", ["RandomDomainSampler", "SeqDomainSampler", "RandomClassSampler"])
def test_samplers_that_only_dassl_has_are_refused(images, name):
    with pytest.raises(ValueError, match=f"'{name}' .* install Dassl, or choose one of RandomSampler, SequentialSampler"):
        build_sampler(name, data_source=images)


# Loaders


def test_the_manager_has_a_loader_for_each_split(cfg, capsys):
    cfg.VERBOSE = True
    cfg.DATASET.TARGET_DOMAINS = ("unlabelled",)
    dm = DataManager(cfg)
    assert [len(loader) for loader in (dm.train_loader_x, dm.train_loader_u, dm.val_loader, dm.test_loader)] == [4] * 4
    assert (dm.num_classes, dm.num_source_domains) == (3, 0)
    assert dm.lab2cname == dm.dataset.lab2cname
    rows = [line.split(maxsplit=2) for line in capsys.readouterr().out.splitlines() if line.startswith("#")]
    assert rows == [["#", "classes", "3"], *(["#", split, "24"] for split in ("train_x", "train_u", "val", "test"))]


def test_splits_that_are_missing_have_no_loader(cfg, capsys):
    cfg.DATASET.TARGET_DOMAINS = ("no val",)
    dm = DataManager(cfg)
    assert dm.train_loader_u is None
    assert dm.val_loader is None


def test_a_batch_has_images_labels_domains_paths_and_indices(cfg, capsys):
    batch = next(iter(DataManager(cfg).train_loader_x))
    assert set(batch) == {"img", "label", "domain", "impath", "index"}
    assert batch["img"].shape == (5, 3, 8, 8)
    assert batch["label"].dtype == torch.int64
    data = DataManager(cfg).dataset.train_x
    for i, path in zip(batch["index"].tolist(), batch["impath"], strict=True):
        assert data[i].impath == path


def test_training_leaves_out_the_last_short_batch_only_if_there_is_a_full_one(cfg, capsys):
    assert [len(b["label"]) for b in DataManager(cfg).train_loader_x] == [5, 5, 5, 5]
    cfg.DATALOADER.TRAIN_X.BATCH_SIZE = 100
    assert [len(b["label"]) for b in DataManager(cfg).train_loader_x] == [24]
    assert [len(b["label"]) for b in DataManager(cfg).test_loader] == [7, 7, 7, 3]


def test_several_views_of_an_image(cfg, images, capsys):
    cfg.DATALOADER.K_TRANSFORMS = 2
    cfg.DATALOADER.RETURN_IMG0 = True
    weak, strong = build_transform(cfg, choices=()), build_transform(cfg)
    item = DatasetWrapper(cfg, images, transform=(strong, weak), is_train=True)[0]
    assert set(item) == {"img", "img2", "img0", "label", "domain", "impath", "index"}
    assert not torch.equal(*item["img"])
    assert torch.equal(*item["img2"])
    assert item["img0"].shape == (3, 8, 8)
    assert isinstance(DatasetWrapper(cfg, images, transform=weak)[0]["img"], torch.Tensor)
    with pytest.raises(ValueError, match=r"K_TRANSFORMS is 2"):
        DatasetWrapper(cfg, images, transform=None, is_train=True)


def test_own_transforms_and_an_own_wrapper_take_the_place_of_the_built_ones(cfg, capsys):
    class Indexed(DatasetWrapper):
        def __getitem__(self, idx):
            return super().__getitem__(idx) | {"train": self.is_train}

    dm = DataManager(
        cfg, custom_tfm_train=lambda _: torch.zeros(1), custom_tfm_test=lambda _: torch.ones(1), dataset_wrapper=Indexed
    )
    train, test = next(iter(dm.train_loader_x)), next(iter(dm.test_loader))
    assert train["img"].eq(0).all()
    assert train["train"].all()
    assert test["img"].eq(1).all()
    assert not test["train"].any()


def epochs(cfg, workers: int, seed: int = 5, count: int = 2) -> list[torch.Tensor]:
    """Return the training images as a trainer sees them."""
    cfg.DATALOADER.NUM_WORKERS = workers
    loader = EpochLoader(DataManager(cfg).train_loader_x, seed)
    batches = []
    for loader.epoch in range(count):
        for batch in loader:
            batches.append(batch["img"])
            torch.rand(3)  # a model that draws, too
    return batches


def test_a_seed_gives_the_same_batches_with_any_number_of_workers(cfg, capsys):
    here = epochs(cfg, workers=0)
    assert torch.equal(torch.stack(here), torch.stack(epochs(cfg, workers=0)))
    assert torch.equal(torch.stack(here), torch.stack(epochs(cfg, workers=2)))


def test_every_epoch_and_every_seed_augments_anew(cfg, capsys):
    cfg.DATALOADER.TRAIN_X.SAMPLER = "SequentialSampler"
    batches = epochs(cfg, workers=0)
    assert not torch.equal(batches[0], batches[4])
    assert not torch.equal(epochs(cfg, workers=0, seed=6)[0], batches[0])


def test_augmentation_leaves_the_global_generators_alone(cfg, capsys):
    loader = EpochLoader(DataManager(cfg, custom_tfm_train=lambda _: random.random() + np.random.rand()).train_loader_x, 0)
    first = next(batches := iter(loader))["img"]
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    second = next(batches)["img"]
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])
    assert len(set(first.tolist() + second.tolist())) == 10


def test_a_split_without_images_is_named(cfg):
    with pytest.raises(ValueError, match="'Colours' has no test or validation images"):
        build_data_loader(cfg, DatasetWrapper, None, False, [], cfg.DATALOADER.TEST)
