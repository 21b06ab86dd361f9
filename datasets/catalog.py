"""The fifteen data sets of the CoOp family: folders, files, addresses, sizes and how their lists are read.

Folders and file names are those of CoOp (github.com/KaiyangZhou/CoOp, DATASETS.md), so that a data folder made for it
or for one of its forks is used as it is. Sizes of the lists are those reported with them (arXiv:2109.01134, appendix).
Addresses and MD5 sums are torchvision's where it fetches the same archive.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from dassl.utils import check_availability

from kdpl.datasets import readers
from kdpl.datasets.folder import DataFolder, Split

IMAGENET_TERMS = "https://image-net.org/download.php (accept the terms of access)"
CARS_PAGE = "no longer offered at its address, {}; copies circulate, see https://github.com/pytorch/vision/issues/7545"


@dataclass(frozen=True)
class Source:
    """A file to be fetched for a data set.

    Attributes:
        gives: files and folders, relative to the data set's folder, that are there when it is done.
        file: the archive's name, or the file's own.
        url: direct address; empty when it must be fetched by hand.
        md5: checksum of `file`; empty where none is published.
        by_hand: where a person finds it, when there is no `url`.
        inside: name in the archive of the first of `gives`, where it differs; it may be an archive itself.
        copy_of: file of another data set, relative to DATASET.ROOT, that it is a copy of.
        only_without_split: whether it is of no use once the published split is there.
    """

    gives: tuple[str, ...]
    file: str = ""
    url: str = ""
    md5: str = ""
    by_hand: str = ""
    inside: str = ""
    copy_of: str = ""
    only_without_split: bool = False

    @property
    def is_archive(self) -> bool:
        """Whether `file` has to be unpacked to give what it gives."""
        return bool(self.file) and self.gives != (self.file,)


@dataclass(frozen=True)
class Facts:
    """What is particular to one data set.

    Attributes:
        name: registered name, DATASET.NAME.
        folder: its folder under DATASET.ROOT.
        images: folder of the images, relative to `folder`; paths in split files start there.
        classes: number of classes.
        sizes: published numbers of training, validation and test images.
        read: gives the three lists where there is no split file.
        sources: files to be fetched.
        split_address: where the published split file is; empty where the data set brings its own lists.
        renamed: class names of folders whose class is called differently.
        ignored: folders that are no class.
        test_only: there is no training list; the test list gives the class names.
        val_is_test: validation uses the test images.
    """

    name: str
    folder: str
    images: str
    classes: int
    sizes: tuple[int, int, int]
    read: Callable[[DataFolder], Split]
    sources: tuple[Source, ...]
    split_address: str = ""
    renamed: dict[str, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    test_only: bool = False
    val_is_test: bool = False

    @property
    def published_split(self) -> str:
        """Name of the split file that published results use."""
        return f"split_zhou_{self.name}.json"

    @property
    def made_split(self) -> str:
        """Name of the split file that is made where the published one is absent."""
        return f"split_kdpl_{self.name}.json"

    def tree(self) -> str:
        """Draw the files and folders that the data set needs."""
        lines = [f"  {self.folder}/"]
        if self.split_address:
            lines.append(f"    {self.published_split}")
        for source in self.sources:
            note = "  (not needed beside the split file)" if source.only_without_split else ""
            lines += [f"    {path}{note}" for path in source.gives]
        return "\n".join(lines)


def _drive(file_id: str) -> str:
    return f"https://drive.google.com/file/d/{file_id}/view"


def _classnames(copied: bool = True) -> Source:
    by_hand = _drive("1-61f_ol79pViBFDG_IDlUQSwoLcn2XXF")
    copy_of = "imagenet/classnames.txt" if copied else ""
    return Source(("classnames.txt",), "classnames.txt", by_hand=by_hand, copy_of=copy_of)


_VGG = "https://www.robots.ox.ac.uk/~vgg/data"

_ALL = (
    Facts(
        name="ImageNet",
        folder="imagenet",
        images="images",
        classes=1000,
        sizes=(1_281_167, 0, 50_000),
        read=readers.imagenet,
        val_is_test=True,
        sources=(
            Source(("images/train",), by_hand=f"{IMAGENET_TERMS}: a folder of images for each of the 1,000 classes"),
            Source(("images/val",), by_hand=f"{IMAGENET_TERMS}: sorted into the same 1,000 folders as images/train"),
            _classnames(copied=False),
        ),
    ),
    Facts(
        name="Caltech101",
        folder="caltech-101",
        images="101_ObjectCategories",
        classes=100,
        sizes=(4_128, 1_649, 2_465),
        read=readers.class_folders,
        split_address=_drive("1hyarUivQE36mY6jSomru6Fjd-JzwcCzN"),
        ignored=("BACKGROUND_Google", "Faces_easy"),
        renamed={"airplanes": "airplane", "Faces": "face", "Leopards": "leopard", "Motorbikes": "motorbike"},
        sources=(
            Source(
                ("101_ObjectCategories",),
                "caltech-101.zip",
                "https://data.caltech.edu/records/mzrjq-6wc02/files/caltech-101.zip",
                "3138e1922a9193bfa496528edbbc45d0",
                inside="101_ObjectCategories.tar.gz",
            ),
        ),
    ),
    Facts(
        name="OxfordPets",
        folder="oxford_pets",
        images="images",
        classes=37,
        sizes=(2_944, 736, 3_669),
        read=readers.oxford_pets,
        split_address=_drive("1501r8Ber4nNKvmlFVQZ8SeUHTcdTTEqs"),
        sources=(
            Source(("images",), "images.tar.gz", f"{_VGG}/pets/data/images.tar.gz", "5c4f3ee8e5d25df40f4fd59a7f44e54c"),
            Source(
                ("annotations",),
                "annotations.tar.gz",
                f"{_VGG}/pets/data/annotations.tar.gz",
                "95a8c909bbe2e81eed6a22bccdf3f68f",
                only_without_split=True,
            ),
        ),
    ),
    Facts(
        name="StanfordCars",
        folder="stanford_cars",
        images="",
        classes=196,
        sizes=(6_509, 1_635, 8_041),
        read=readers.stanford_cars,
        split_address=_drive("1ObCFbaAgVu0I-k_Au-gIUcefirdAuizT"),
        sources=(
            Source(
                ("cars_train",),
                "cars_train.tgz",
                md5="065e5b463ae28d29e77c1b4b166cfe61",
                by_hand=CARS_PAGE.format("http://ai.stanford.edu/~jkrause/car196/cars_train.tgz"),
            ),
            Source(
                ("cars_test",),
                "cars_test.tgz",
                md5="4ce7ebf6a94d07f1952d94dd34c4d501",
                by_hand=CARS_PAGE.format("http://ai.stanford.edu/~jkrause/car196/cars_test.tgz"),
            ),
            Source(
                ("devkit",),
                "car_devkit.tgz",
                md5="c3b158d763b6e2245038c8ad08e45376",
                by_hand=CARS_PAGE.format("https://ai.stanford.edu/~jkrause/cars/car_devkit.tgz"),
                only_without_split=True,
            ),
            Source(
                ("cars_test_annos_withlabels.mat",),
                "cars_test_annos_withlabels.mat",
                md5="b0a2b23655a3edd16d84508592a98d10",
                by_hand=CARS_PAGE.format("http://ai.stanford.edu/~jkrause/car196/cars_test_annos_withlabels.mat"),
                only_without_split=True,
            ),
        ),
    ),
    Facts(
        name="OxfordFlowers",
        folder="oxford_flowers",
        images="jpg",
        classes=102,
        sizes=(4_093, 1_633, 2_463),
        read=readers.oxford_flowers,
        split_address=_drive("1Pp0sRXzZFZq15zVOzKjKBu4A9i01nozT"),
        sources=(
            Source(("jpg",), "102flowers.tgz", f"{_VGG}/flowers/102/102flowers.tgz", "52808999861908f626f3c1f4e79d11fa"),
            Source(
                ("imagelabels.mat",),
                "imagelabels.mat",
                f"{_VGG}/flowers/102/imagelabels.mat",
                "e0620be6f572b9609742df49c70aed4d",
                only_without_split=True,
            ),
            Source(
                ("cat_to_name.json",),
                "cat_to_name.json",
                by_hand=_drive("1AkcxCXeK_RCGCEC_GvmWxjcjaNhu-at0"),
                only_without_split=True,
            ),
        ),
    ),
    Facts(
        name="Food101",
        folder="food-101",
        images="images",
        classes=101,
        sizes=(50_500, 20_200, 30_300),
        read=readers.class_folders,
        split_address=_drive("1QK0tGi096I0Ba6kggatX1ee6dJFIcEJl"),
        sources=(
            Source(
                ("images",),
                "food-101.tar.gz",
                "http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz",
                "85eeb15f3717b99a5da872d97d918f87",
            ),
        ),
    ),
    Facts(
        name="FGVCAircraft",
        folder="fgvc_aircraft",
        images="images",
        classes=100,
        sizes=(3_334, 3_333, 3_333),
        read=readers.fgvc_aircraft,
        sources=(
            Source(
                (
                    "images",
                    "variants.txt",
                    "images_variant_train.txt",
                    "images_variant_val.txt",
                    "images_variant_test.txt",
                ),
                "fgvc-aircraft-2013b.tar.gz",
                f"{_VGG}/fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz",
            ),
        ),
    ),
    Facts(
        name="SUN397",
        folder="sun397",
        images="SUN397",
        classes=397,
        sizes=(15_880, 3_970, 19_850),
        read=readers.sun397,
        split_address=_drive("1y2RD81BYuiyvebdN-JymPfyWYcd8_MUq"),
        sources=(
            Source(
                ("SUN397",),
                "SUN397.tar.gz",
                "http://vision.princeton.edu/projects/2010/SUN/SUN397.tar.gz",
                "8ca2778205c41d23104230ba66911c7a",
            ),
            Source(
                ("ClassName.txt", "Training_01.txt", "Testing_01.txt"),
                "Partitions.zip",
                "https://vision.princeton.edu/projects/2010/SUN/download/Partitions.zip",
                "29a205c0a0129d21f36cbecfefe81881",
                only_without_split=True,
            ),
        ),
    ),
    Facts(
        name="DescribableTextures",
        folder="dtd",
        images="images",
        classes=47,
        sizes=(2_820, 1_128, 1_692),
        read=readers.class_folders,
        split_address=_drive("1u3_QfB467jqHgNXC00UIzbLZRQCg2S7x"),
        sources=(
            Source(
                ("images",),
                "dtd-r1.0.1.tar.gz",
                f"{_VGG}/dtd/download/dtd-r1.0.1.tar.gz",
                "fff73e5086ae6bdbea199a49dfb8a4c1",
            ),
        ),
    ),
    Facts(
        name="EuroSAT",
        folder="eurosat",
        images="2750",
        classes=10,
        sizes=(13_500, 5_400, 8_100),
        read=readers.class_folders,
        split_address=_drive("1Ip7yaCWFi0eaOFUGga0lUdVi_DDQth1o"),
        renamed={
            "AnnualCrop": "Annual Crop Land",
            "HerbaceousVegetation": "Herbaceous Vegetation Land",
            "Highway": "Highway or Road",
            "Industrial": "Industrial Buildings",
            "Pasture": "Pasture Land",
            "PermanentCrop": "Permanent Crop Land",
            "Residential": "Residential Buildings",
            "SeaLake": "Sea or Lake",
        },
        sources=(
            Source(
                ("2750",),
                "EuroSAT.zip",
                "https://huggingface.co/datasets/torchgeo/eurosat/resolve/c877bcd43f099cd0196738f714544e355477f3fd/EuroSAT.zip",
                "c8fa014336c82ac7804f0398fcb19387",
            ),
        ),
    ),
    Facts(
        name="UCF101",
        folder="ucf101",
        images="UCF-101-midframes",
        classes=101,
        sizes=(7_639, 1_898, 3_783),
        read=readers.ucf101,
        split_address=_drive("1I0S0q91hJfsV9Gf4xDIjgDq4AqBNJb1y"),
        sources=(
            Source(("UCF-101-midframes",), "UCF-101-midframes.zip", by_hand=_drive("10Jqome3vtUA2keJkNanAiFpgbyC9Hc2O")),
            Source(
                ("ucfTrainTestlist",),
                "UCF101TrainTestSplits-RecognitionTask.zip",
                "https://www.crcv.ucf.edu/data/UCF101/UCF101TrainTestSplits-RecognitionTask.zip",
                only_without_split=True,
            ),
        ),
    ),
    Facts(
        name="ImageNetV2",
        folder="imagenetv2",
        images="imagenetv2-matched-frequency-format-val",
        classes=1000,
        sizes=(0, 0, 10_000),
        read=readers.imagenet_v2,
        test_only=True,
        sources=(
            Source(
                ("imagenetv2-matched-frequency-format-val",),
                "imagenetv2-matched-frequency.tar.gz",
                by_hand="https://github.com/modestyachts/ImageNetV2",
            ),
            _classnames(),
        ),
    ),
    Facts(
        name="ImageNetSketch",
        folder="imagenet-sketch",
        images="images",
        classes=1000,
        sizes=(0, 0, 50_889),
        read=readers.imagenet_sketch,
        test_only=True,
        sources=(
            Source(
                ("images",),
                "ImageNet-Sketch.zip",
                by_hand="https://github.com/HaohanWang/ImageNet-Sketch",
                inside="sketch",
            ),
            _classnames(),
        ),
    ),
    Facts(
        name="ImageNetA",
        folder="imagenet-adversarial",
        images="imagenet-a",
        classes=200,
        sizes=(0, 0, 7_500),
        read=readers.imagenet_part,
        test_only=True,
        sources=(
            Source(
                ("imagenet-a",),
                "imagenet-a.tar",
                md5="c3e55429088dc681f30d81f4726b6595",
                by_hand="https://github.com/hendrycks/natural-adv-examples",
            ),
            _classnames(),
        ),
    ),
    Facts(
        name="ImageNetR",
        folder="imagenet-rendition",
        images="imagenet-r",
        classes=200,
        sizes=(0, 0, 30_000),
        read=readers.imagenet_part,
        test_only=True,
        sources=(
            Source(
                ("imagenet-r",),
                "imagenet-r.tar",
                md5="a61312130a589d0ca1a8fca1f2bd3337",
                by_hand="https://github.com/hendrycks/imagenet-r",
            ),
            _classnames(),
        ),
    ),
)

CATALOG = {facts.name: facts for facts in _ALL}


def facts_of(name: str) -> Facts:
    """Return a data set's entry.

    Raises:
        ValueError: there is none of this name; the closest is named.
    """
    check_availability(name, list(CATALOG))
    return CATALOG[name]
