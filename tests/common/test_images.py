"""Images of every kind are read as upright RGB, plain ones to the very pixel; what is none is named with the reason."""

import io
import os

import numpy as np
import pytest
import torch
from PIL import Image
from support import image_file

from kdpl.common.images import (
    LONGEST,
    ORIENTATION,
    BadImageError,
    as_image,
    cut_extreme,
    list_images,
    open_image,
    others_line,
)

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8)


def pixels(image):
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif", "gif"])
def test_a_plain_file_gives_the_pixels_of_the_ordinary_way(suffix, tmp_path):
    path = tmp_path / f"image.{suffix}"
    Image.fromarray(RGB).save(path)
    assert np.array_equal(pixels(open_image(path)), pixels(Image.open(path).convert("RGB")))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_exif_orientation_is_applied(orientation, tmp_path):
    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:8, :16] = 255  # white above on the left
    undo = {1: [], 2: [0], 3: [3], 4: [1], 5: [5], 6: [2], 7: [6], 8: [4]}[orientation]
    image = Image.fromarray(upright)
    for method in undo:
        image = image.transpose(Image.Transpose(method))
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = tmp_path / "image.png"
    image.save(path, exif=exif)
    assert np.array_equal(pixels(open_image(path)), upright)
    assert np.array_equal(pixels(as_image(Image.open(path))), upright)


def test_every_colour_mode_becomes_rgb(tmp_path):
    rgb = Image.fromarray(RGB)
    for mode, suffix in (("L", "png"), ("1", "png"), ("P", "png"), ("CMYK", "jpg"), ("CMYK", "tif"), ("LAB", "tif")):
        rgb.convert(mode).save(tmp_path / f"image.{suffix}")
        expected = Image.open(tmp_path / f"image.{suffix}").convert("RGB")
        assert np.array_equal(pixels(open_image(tmp_path / f"image.{suffix}")), pixels(expected)), mode


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
def test_transparency_is_laid_on_white(mode, tmp_path):
    """Left transparent green, right opaque black."""
    image, flags = Image.new("RGBA", (4, 2), (0, 0, 0, 255)), {}
    image.paste((0, 255, 0, 0), (0, 0, 2, 2))
    if mode == "P":
        image, flags = Image.new("P", (4, 2), 1), {"transparency": 0}
        image.putpalette([0, 255, 0, 0, 0, 0])
        image.paste(0, (0, 0, 2, 2))
    elif mode == "RGB":
        flags = {"transparency": (0, 255, 0)}
    image.convert(mode).save(tmp_path / "image.png", **flags)
    assert pixels(open_image(tmp_path / "image.png")).mean(-1).tolist() == [[255, 255, 0, 0]] * 2


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bits_are_scaled_to_8(suffix, tmp_path):
    values = np.array([[0, 257, 128 * 257, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / f"image.{suffix}")
    assert pixels(open_image(tmp_path / f"image.{suffix}"))[0, :, 0].tolist() == [0, 1, 128, 255]


def test_heic_is_read_where_pillow_heif_is_installed(tmp_path):
    heif = pytest.importorskip("pillow_heif")
    grey = Image.new("RGB", (64, 48), (120, 130, 140))
    heif.from_pillow(grey).save(tmp_path / "photo.heic")
    assert np.abs(pixels(open_image(tmp_path / "photo.heic")).astype(int) - (120, 130, 140)).max() <= 4


def test_what_is_no_image_is_named_with_the_reason(tmp_path, monkeypatch):
    data = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(data, "JPEG")
    (tmp_path / "truncated.jpg").write_bytes(data.getvalue()[:600])
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("not an image")
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "float.tif")
    image_file(tmp_path / "bomb.png", 200)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    for name, reason in {
        "truncated.jpg": "truncated",
        "empty.png": "the file is empty",
        "text.jpg": "unknown image format",
        "float.tif": "floats of unknown range",
        "bomb.png": "more than 20,000 pixels",
        "missing.jpg": "no such file",
        ".": "a folder",
    }.items():
        path = tmp_path / name
        with pytest.raises(BadImageError, match=reason) as error:
            open_image(path)
        assert str(path) in str(error.value)


def test_arrays_and_tensors_of_every_type_and_shape_mean_the_same_image():
    chw = torch.from_numpy(RGB).permute(2, 0, 1)
    same = [
        RGB,
        RGB.astype(np.uint16) * 257,
        RGB.astype(np.float32) / 255,
        RGB.astype(np.float64) / 255,
        np.dstack([RGB, np.full((6, 8), 255, np.uint8)]),
        RGB[::-1][::-1],
        chw,
        chw.float() / 255,
        torch.cat([chw, torch.full((1, 6, 8), 255, dtype=torch.uint8)]),
        Image.fromarray(RGB),
    ]
    for image in same:
        assert np.array_equal(pixels(as_image(image)), RGB)
    grey = RGB[..., 0]
    for image in (grey, grey[..., None], torch.from_numpy(grey), torch.from_numpy(grey)[None]):
        assert np.array_equal(pixels(as_image(image)), np.dstack([grey] * 3))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(8, 8, 3), r"Tensor of shape \(8, 8, 3\) and type float32 is not an image: expected \(3, H, W\)"),
        (np.zeros((8, 8), np.int64), "type int64"),
        (RGB.astype(np.float32), r"floats in 0\.\.\d+ "),
        (np.full((4, 4), np.nan), "floats in nan"),
    ],
)
def test_other_arrays_are_refused(image, message):
    with pytest.raises(BadImageError, match=message):
        as_image(image)


def test_images_are_found_at_any_depth_and_what_is_none_is_counted_or_named(tmp_path):
    names = ["b.JPG", "a/c.png", "a/d/e.heic", ".hidden.jpg", ".git/f.png", "notes.txt", "a/Thumbs.db", "raw.CR2", "b.cr2"]
    names += ["m.mpo", "n.jp2"]
    image_file(tmp_path / "p.jpg").rename(tmp_path / "plain")  # without a suffix
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "a" / "back").symlink_to(tmp_path)
    (tmp_path / "itself.jpg").symlink_to("itself.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "device.png").symlink_to("/dev/zero")
    (tmp_path / "folder.jpg").mkdir()
    listing = list_images(tmp_path)
    found = [str(p.relative_to(tmp_path)) for p in listing.images]
    assert found == ["a/c.png", "a/d/e.heic", "b.JPG", "m.mpo", "n.jp2", "plain"]
    assert listing.others == {"": 3, ".txt": 1, ".db": 1, ".cr2": 2}  # .git is one, and so is the link that leads back
    assert others_line(listing.others) == "2 .CR2, 1 .TXT, 1 .DB"
    assert {path.name: reason.partition(": ")[2] for path, reason in listing.unreadable.items()} == {
        "itself.jpg": "it is a link that leads nowhere.",
        "pipe.jpg": "it is not a regular file.",
        "device.png": "it is not a regular file.",
    }
    for name in ("pipe.jpg", "device.png"):  # opening them would wait for ever, or never end
        with pytest.raises(BadImageError, match="it is not a regular file"):
            open_image(tmp_path / name)


def test_a_line_of_pixels_is_cut_before_it_is_resized():
    line = Image.new("RGB", (60_000, 2), "red")
    line.paste("blue", (29_990, 0, 30_010, 2))
    assert cut_extreme(line).size == (2 * LONGEST, 2)
    assert cut_extreme(line).getpixel((LONGEST, 0)) == (0, 0, 255)
    assert cut_extreme(line.transpose(Image.Transpose.ROTATE_90)).size == (2, 2 * LONGEST)
    for size in ((LONGEST * 3, 3), (5, 4), (1, 1)):
        image = Image.new("RGB", size)
        assert cut_extreme(image) is image


def test_a_jpeg_is_decoded_at_a_fraction_that_keeps_its_shorter_edge(tmp_path):
    image_file(tmp_path / "large.jpg", 800)
    assert [open_image(tmp_path / "large.jpg", least).size[0] for least in (0, 500, 400, 150, 20)] == [800, 800, 400, 200, 100]
    assert open_image(image_file(tmp_path / "large.png", 800), 20).size == (800, 800)
