"""Images of every kind are read as upright RGB, plain ones to the very pixel; what is none is named with the reason."""

import io
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from support import image_file

from kdpl.common import image_files
from kdpl.common.image_files import list_images, media_line, natural_key
from kdpl.common.images import LONGEST, ORIENTATION, BadImageError, as_image, cut_extreme, open_image, to_rgb

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


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_does_not_cost_the_pixels(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "image.jpg", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01")
    assert open_image(tmp_path / "image.jpg").size == (8, 6)


def test_every_colour_mode_becomes_rgb(tmp_path):
    rgb = Image.fromarray(RGB)
    for mode, suffix in (("L", "png"), ("1", "png"), ("P", "png"), ("CMYK", "jpg"), ("CMYK", "tif"), ("LAB", "tif")):
        rgb.convert(mode).save(tmp_path / f"image.{suffix}")
        expected = Image.open(tmp_path / f"image.{suffix}").convert("RGB")
        assert np.array_equal(pixels(open_image(tmp_path / f"image.{suffix}")), pixels(expected)), mode


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
def test_transparency_is_laid_on_white(mode, tmp_path):
    """Left transparent, right opaque black."""
    path = tmp_path / "image.png"
    if mode == "P":
        image = Image.new("P", (4, 2), 1)
        image.putpalette([0, 255, 0, 0, 0, 0])
        image.paste(0, (0, 0, 2, 2))
        image.save(path, transparency=0)
    elif mode == "RGB":
        image = Image.new("RGB", (4, 2))
        image.paste((0, 255, 0), (0, 0, 2, 2))
        image.save(path, transparency=(0, 255, 0))
    else:
        image = Image.new("RGBA", (4, 2), (0, 0, 0, 255))
        image.paste((0, 255, 0, 0), (0, 0, 2, 2))
        image.convert(mode).save(path)
    assert pixels(open_image(path)).mean(-1).tolist() == [[255, 255, 0, 0]] * 2


def test_half_transparent_colour_is_mixed_with_white():
    half = np.full((2, 2, 4), (0, 0, 0, 128), np.uint8)
    assert abs(int(pixels(as_image(half))[0, 0, 0]) - 127) <= 1


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bits_are_scaled_to_8(suffix, tmp_path):
    values = np.array([[0, 257, 128 * 257, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / f"image.{suffix}")
    assert pixels(open_image(tmp_path / f"image.{suffix}"))[0, :, 0].tolist() == [0, 1, 128, 255]


def test_an_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert pixels(open_image(tmp_path / "a.gif"))[0, 0].tolist() == [255, 0, 0]


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
        (np.zeros((3, 8, 8), np.uint8), r"ndarray of shape \(3, 8, 8\)"),
        (torch.zeros(8, 8, 3), r"Tensor of shape \(8, 8, 3\) is not an image: expected \(3, H, W\)"),
        (np.zeros((0, 8, 3), np.uint8), "shape"),
        (np.zeros((8, 8), np.int64), "type int64"),
        (RGB.astype(np.float32), r"floats in 0\.\.\d+ "),
        (np.full((4, 4), np.nan), "floats in nan"),
    ],
)
def test_other_arrays_are_refused(image, message):
    with pytest.raises(BadImageError, match=message):
        as_image(image)


def test_other_things_are_refused():
    with pytest.raises(TypeError, match="int is not an image"):
        as_image(3)


def test_images_are_found_at_any_depth_and_hidden_or_other_files_counted(tmp_path):
    names = ["b.JPG", "a/c.png", "a/d/e.heic", ".hidden.jpg", ".git/f.png", ".DS_Store", "notes.txt", "a/Thumbs.db"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "a" / "back").symlink_to(tmp_path)
    listing = list_images(tmp_path)
    assert [str(p.relative_to(tmp_path)) for p in listing.images] == ["a/c.png", "a/d/e.heic", "b.JPG"]
    assert listing.others == 6 and not listing.unreadable  # .git is one, and so is the link that leads back


# --------------------------------------------------------------------------------------------- whatever lies in a folder


def test_folders_that_link_to_each_other_are_listed_once(tmp_path):
    for name in ("a/1.png", "b/2.png"):
        image_file(tmp_path / name)
    (tmp_path / "a" / "to b").symlink_to(tmp_path / "b")
    (tmp_path / "b" / "to a").symlink_to(tmp_path / "a")
    outside = image_file(tmp_path.parent / f"{tmp_path.name} outside" / "3.png").parent
    (tmp_path / "linked").symlink_to(outside)
    (tmp_path / "linked twice").symlink_to(outside)
    listing = list_images(tmp_path)
    assert [str(p.relative_to(tmp_path)) for p in listing.images] == ["a/1.png", "b/2.png", "linked/3.png"]
    assert listing.others == 3 and not listing.unreadable


def test_odd_entries_are_listed_with_their_reasons_and_stop_nothing(tmp_path):
    image_file(tmp_path / "photo.png")
    (tmp_path / "itself.jpg").symlink_to("itself.jpg")
    (tmp_path / "nowhere.jpg").symlink_to("gone.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "device.png").symlink_to("/dev/zero")
    (tmp_path / "folder.jpg").mkdir()
    for name in ("raw.CR2", "b.cr2", "film.MOV", "notes.txt"):
        (tmp_path / name).touch()
    listing = list_images(tmp_path)
    assert listing.images == [tmp_path / "photo.png"]
    reasons = {path.name: reason.partition(": ")[2] for path, reason in listing.unreadable.items()}
    assert reasons == {
        "itself.jpg": "too many levels of symbolic links.",
        "nowhere.jpg": "it is a link to a file that does not exist.",
        "pipe.jpg": "it is a FIFO (named pipe).",
        "device.png": "it is a device.",
    }
    assert listing.others == 4 and media_line(listing.media) == "2 .CR2, 1 .MOV"
    for name in ("pipe.jpg", "device.png"):  # opening them would wait for ever, or never end
        with pytest.raises(BadImageError, match=r"it is a (FIFO|device)"):
            open_image(tmp_path / name)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become somebody else")
def test_a_folder_that_must_not_be_read_costs_nothing_but_itself(tmp_path):
    image_file(tmp_path / "photo.png")
    image_file(tmp_path / "lost+found" / "secret.png")
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_mode & 0o5 != 0o5:
            folder.chmod(0o755)
    (tmp_path / "lost+found").chmod(0o700)
    code = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("image_files", {str(image_files.__file__)!r})
module = importlib.util.module_from_spec(spec)
sys.modules["image_files"] = module
spec.loader.exec_module(module)
import os; os.setuid(65534)
listing = module.list_images({str(tmp_path)!r})
print(len(listing.images), *listing.unreadable.values())
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert process.stdout.startswith("1 "), process.stderr
    assert "lost+found' cannot be listed: Permission denied" in process.stdout


@pytest.mark.slow
def test_a_folder_deeper_than_python_recurses_is_listed(tmp_path):
    folders = [tmp_path]
    try:
        for _ in range(1200):
            folders.append(folders[-1] / "d")
            folders[-1].mkdir()
        (folders[-1] / "x.png").touch()
        assert list_images(tmp_path).images == [folders[-1] / "x.png"]
    finally:  # what clears temporary folders away recurses
        (folders[-1] / "x.png").unlink(missing_ok=True)
        for folder in reversed(folders[1:]):
            folder.rmdir()


def test_names_are_sorted_as_people_count():
    names = ["img_10.jpg", "b/1.jpg", "img_2.jpg", "IMG_3.jpg", "a/2.jpg", "007.jpg"]
    assert sorted(names, key=natural_key) == ["007.jpg", "a/2.jpg", "b/1.jpg", "img_2.jpg", "IMG_3.jpg", "img_10.jpg"]


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1), max_size=6))
def test_any_names_can_be_sorted(names):
    assert sorted(sorted(names, key=natural_key)) == sorted(names)


def test_a_line_of_pixels_is_cut_before_it_is_resized():
    line = Image.new("RGB", (60_000, 2), "red")
    line.paste("blue", (29_990, 0, 30_010, 2))
    assert cut_extreme(line).size == (2 * LONGEST, 2)
    assert cut_extreme(line).getpixel((LONGEST, 0)) == (0, 0, 255)
    assert cut_extreme(line.transpose(Image.Transpose.ROTATE_90)).size == (2, 2 * LONGEST)
    for size in ((LONGEST * 3, 3), (5, 4), (1, 1)):
        image = Image.new("RGB", size)
        assert cut_extreme(image) is image


def test_a_pil_image_that_fails_late_is_a_bad_image(tmp_path):
    path = image_file(tmp_path / "cut.png", 128)
    path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(BadImageError, match=r"PIL image of \(128, 128\) cannot be read: .*"):
        as_image(Image.open(path))


def test_a_jpeg_is_decoded_at_a_fraction_that_keeps_its_shorter_edge(tmp_path):
    image_file(tmp_path / "large.jpg", 800)
    assert [open_image(tmp_path / "large.jpg", least).size[0] for least in (0, 500, 400, 150, 20)] == [800, 800, 400, 200, 100]
    assert open_image(image_file(tmp_path / "large.png", 800), 20).size == (800, 800)


def test_only_unusual_images_have_other_pixels_than_convert():
    """docs/models.md says so, and why."""
    rng = np.random.default_rng(0)
    plain = Image.fromarray(rng.integers(0, 256, (8, 10, 3), dtype=np.uint8))
    assert np.array_equal(to_rgb(plain), plain.convert("RGB"))
    clear = Image.fromarray(rng.integers(0, 200, (8, 10, 4), dtype=np.uint8))
    palette = plain.quantize(8)
    palette.info["transparency"] = palette.getpixel((0, 0))
    deep = Image.fromarray(rng.integers(300, 65536, (8, 10)).astype(np.uint16))
    turned = plain.copy()
    turned.getexif()[0x0112] = 6
    for image in (clear, palette, deep, turned):
        assert not np.array_equal(to_rgb(image), image.convert("RGB")), image.mode
