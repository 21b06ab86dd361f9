"""What is exported agrees with `kdpl predict`: the client in Python, and the page in a real browser.

onnxruntime for the page comes from npm, once: it stays in pytest's cache between runs.
"""

import base64
import dataclasses
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from functools import partial

import numpy as np
import PIL
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from support import untrained_bundle

import kdpl
from kdpl.bundle import Decision, read_bundle, write_bundle
from kdpl.classifier.decoding import Decoder
from kdpl.classifier.serve import PAGE, RUNTIME_VERSION, write_head
from kdpl.clip.model import NotFiniteError
from kdpl.clip.preprocessing import RESIZE_MODES, Preprocessing
from kdpl.common import exits
from kdpl.common.images import ORIENTATION
from kdpl.common.safe_text import REJECTED
from kdpl.datasets.emoji.scenes import draw, scenes_of
from kdpl.photos.share import main
from kdpl.students.kernel_head import KernelHead, Solved

pytestmark = pytest.mark.slow

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")
client = pytest.importorskip("kdpl.classifier.serve.client")
NAMES = ["red apple", "pizza", "croissant", "🍇 grapes"]


@pytest.fixture(scope="module", params=["CoOp", "KernelHead"])
def prompts(request, tmp_path_factory):
    """Prompts, or a head, with a temperature, and a threshold that rejects about a half of the photos."""
    folder = untrained_bundle(tmp_path_factory.mktemp("out"), request.param, NAMES)
    bundle = read_bundle(folder)
    decision = Decision(temperature=2.0, background=["car", "tree", "house"], threshold=1.0, classnames=NAMES)
    learned = bundle.parameters
    if request.param == "KernelHead":
        x, a = (torch.randn(shape, generator=torch.Generator().manual_seed(1)) for shape in ((10, 128), (10, 4)))
        learned = KernelHead.parameters_of(Solved(F.normalize(x, dim=-1), a, torch.full((4,), 0.25), 5.0, 0.001), 9.0)
    write_bundle(folder, dataclasses.replace(bundle, decision=decision, parameters=learned))
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Photos as people have them: turned, transparent, of 16 bits, grey, of odd sizes."""
    folder = tmp_path_factory.mktemp("photos")
    scenes = draw(scenes_of("meals")[::97][:8])
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    images = [Image.fromarray(scene).resize(size, Image.Resampling.BICUBIC) for scene, size in zip(
        scenes, [(640, 480), (480, 640), (200, 301), (300, 300), (97, 64), (1200, 800), (64, 64), (50, 40)], strict=True
    )]  # fmt: skip
    images[0].transpose(Image.Transpose.ROTATE_90).save(folder / "turned.jpg", exif=exif, quality=95)
    clear = images[1].convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(clear.size))
    clear.save(folder / "transparent.png")
    Image.fromarray(np.asarray(images[2].convert("L")).astype(np.uint16) * 251).save(folder / "deep.png")
    images[3].convert("L").save(folder / "grey.png")
    images[4].convert("P").save(folder / "palette.png")
    images[5].save(folder / "large.jpg", quality=90)
    images[6].save(folder / "exact.webp", lossless=True)
    images[7].save(folder / "small.png")
    return folder


def expected_of(prompts, photos, **options):
    clf = kdpl.load(prompts, "cpu", **options)
    paths = sorted(str(p) for p in photos.iterdir())
    (answer,) = clf.stream(paths, reject=True)
    return dict(zip(paths, zip(answer.probabilities.numpy(), answer.rejected.tolist(), strict=True), strict=True))


@pytest.fixture(scope="module")
def exported(prompts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("served") / "folder"
    assert main([str(prompts), str(folder), "--reject", "--no-page"]) == 0
    assert main([str(prompts), str(folder.parent / "half"), "--reject", "--half", "--no-page"]) == 0
    return folder


def test_the_client_turns_composes_and_resizes_as_predict_does(exported, prompts, photos):
    model, expected = client.Model(exported), expected_of(prompts, photos)
    command = [sys.executable, str(exported / "client.py"), *expected]
    process = subprocess.run(command, capture_output=True, text=True, check=True, env={"PATH": os.environ["PATH"]})
    lines = [line.split("\t") for line in process.stdout.splitlines()]
    for (path, name, p), (probabilities, rejected) in zip(lines, expected.values(), strict=True):
        found, none = model(path)
        assert np.abs(found - probabilities).max() < 1e-5 and none == rejected, path
        assert name == (REJECTED if rejected else NAMES[probabilities.argmax()])
        assert abs(float(p) - probabilities.max()) < 1e-4
    assert {rejected for _, rejected in expected.values()} == {True, False}, "the threshold says something"


def drawn(height, width, seed=0):
    """An image of nothing but hard edges."""
    return 255 * np.random.default_rng(seed).integers(0, 2, (height, width, 3), dtype=np.uint8)


SIZES = [(48, 48), (49, 48), (48, 51), (210, 100), (100, 210), (9, 300), (331, 47), (1, 60), (60, 1), (600, 450), (97, 1203)]


@pytest.fixture(scope="module")
def by_javascript(tmp_path_factory, browser):
    """A function that prepares images with the page's JavaScript."""
    page = browser.new_page()
    source = PAGE["resize.js"].read_text(encoding="utf-8")
    page.add_script_tag(content=f"{source}\nwindow.prepared = prepared;", type="module")
    page.wait_for_function("() => Boolean(window.prepared)")

    def prepare(image, side, interpolation, squash):
        rgba = np.concatenate([image, np.full_like(image[..., :1], 255)], -1).tobytes()
        facts = {"side": side, "interpolation": interpolation, "squash": squash, "pillow": int(PIL.__version__.split(".")[0])}
        call = "([data, w, h, facts]) => Array.from(prepared(Uint8Array.from(atob(data), c => c.charCodeAt(0)), w, h, facts))"
        values = page.evaluate(call, [base64.b64encode(rgba).decode(), image.shape[1], image.shape[0], facts])
        return np.array(values).reshape(3, side, side)

    yield prepare
    page.close()


@pytest.mark.parametrize("mode", RESIZE_MODES)
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_every_pixel_that_page_and_client_prepare_is_that_of_the_decoder(mode, interpolation, by_javascript):
    decoder, plain = Decoder(Preprocessing((48, 48), interpolation, resize_mode=mode)), client.Model.__new__(client.Model)
    plain.facts = {"side": 48, "interpolation": interpolation, "squash": mode == "squash", "longest": 20}
    for seed, (height, width) in enumerate(SIZES):
        image = drawn(height, width, seed)
        ((expected,),) = decoder.batches(image, 1, 0)
        (by_client,) = plain.pixels(Image.fromarray(image))
        assert np.array_equal((255 * by_client).round(), expected.pixels.numpy())
        if max(height, width) <= 20 * min(height, width):  # of longer ones the page draws the middle alone
            by_page = by_javascript(image, 48, interpolation, mode == "squash")
            assert np.array_equal((255 * by_page).round(), expected.pixels.numpy()), (height, width)


def test_half_precision_halves_the_file_and_hardly_changes_a_probability(exported, prompts, photos):
    whole, half = ((exported.parent / name / "model.onnx").stat().st_size for name in ("folder", "half"))
    assert half < 0.55 * whole
    model = client.Model(exported.parent / "half")
    expected = expected_of(prompts, photos).items()
    assert 0 < max(np.abs(model(path)[0] - probabilities).max() for path, (probabilities, _) in expected) < 5e-3


def test_weights_that_half_precision_does_not_hold_are_refused_and_nothing_is_written(tmp_path, capsys):
    """Prompts of 70,000 are finite, and the model normalises them; half precision ends at 65,504."""
    folder = untrained_bundle(tmp_path / "vpt", "VPT", NAMES, N_CTX_VISION=16, PROMPT_DEPTH_VISION=1)
    bundle = read_bundle(folder)
    large = {name: torch.full_like(value, 70_000.0) for name, value in bundle.parameters.items()}
    write_bundle(folder, dataclasses.replace(bundle, parameters=large))
    for flags, status in ((["--half"], exits.BAD_INPUT), ([], 0)):
        assert main([str(folder), str(tmp_path / "out"), "--no-page", *flags]) == status
        err = capsys.readouterr().err
        assert ("of the model has values up to 7e+04, and half precision ends at 65,504" in err) == bool(status)
        assert (tmp_path / "out" / "model.onnx").exists() != bool(status)


def test_nothing_that_is_not_finite_is_exported(tmp_path, monkeypatch):
    """Whatever the cause: here the scale of the logits overflows, of text features that are finite."""
    classifier = kdpl.load(untrained_bundle(tmp_path, "CoOp", NAMES), "cpu")
    infinite = torch.tensor(float("inf"))
    monkeypatch.setattr("kdpl.students.base.Student.logit_scale", property(lambda self: infinite))
    for write in (classifier.export_onnx, partial(write_head, classifier)):
        with pytest.raises(NotFiniteError, match="hold NaN or infinite values"):
            write(tmp_path / "file")
        assert not (tmp_path / "file").exists()
    for broken in ({"parameters": {"ctx": torch.full((4, 128), float("nan"))}}, {"results": [{"accuracy": float("nan")}]}):
        with pytest.raises(ValueError, match=r"'ctx' hold NaN|not JSON compliant"):
            write_bundle(tmp_path / "b", dataclasses.replace(classifier.bundle, **broken))
        assert not [*(tmp_path / "b").glob("*")]


def test_what_cannot_be_exported_is_refused(prompts, tmp_path, capsys):
    plain = untrained_bundle(tmp_path / "plain", "CoOp", NAMES)
    conditional = untrained_bundle(tmp_path / "cocoop", "CoCoOp", NAMES)
    (tmp_path / "names.txt").write_text("a\nb\n")
    for argv, message in (
        ([plain, "--reject"], "no threshold to reject images by"),
        ([conditional], "CoCoOp cannot be exported with a fixed list"),
        (
            [prompts, "--reject", "--classnames", tmp_path / "names.txt"],
            "calibrated for other|class-specific: it learned",
        ),
        ([plain, "--runtime", tmp_path / "names.txt"], "is not the npm package onnxruntime-web"),
        ([plain, "--runtime", "nowhere.tgz"], "is not the npm package onnxruntime-web .*--no-page"),
    ):
        first, *rest = map(str, argv)
        assert main([first, str(tmp_path / "folder"), *rest]) == exits.BAD_INPUT
        assert re.search(message, capsys.readouterr().err)


# -------------------------------------------------------------------------------------------------------------- a browser


@pytest.fixture(scope="session")
def package(request):
    """The npm package onnxruntime-web, fetched at the first run."""
    folder = request.config.cache.mkdir(f"onnxruntime-web-{RUNTIME_VERSION}")
    if not (npm := shutil.which("npm")):
        pytest.skip("there is no npm to get onnxruntime-web with")
    if not list(folder.glob("*.tgz")):
        try:
            command = [npm, "pack", f"onnxruntime-web@{RUNTIME_VERSION}", "--silent"]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=300)
        except subprocess.TimeoutExpired:
            pytest.skip("npm does not end within 300 s")
        if done.returncode:
            pytest.skip(f"npm cannot fetch onnxruntime-web: {done.stderr[-300:]}")
    return next(folder.glob("*.tgz"))


@pytest.fixture(scope="module")
def served(prompts, package, tmp_path_factory):
    """The address of an exported folder, served as the guide says."""
    folder = tmp_path_factory.mktemp("served") / "site"
    assert main([str(prompts), str(folder), "--reject", "--runtime", str(package)]) == 0
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1", "--directory", str(folder)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(100):
        with socket.socket() as there:
            if not there.connect_ex(("127.0.0.1", port)):
                break
        time.sleep(0.1)
    yield f"http://127.0.0.1:{port}/"
    server.terminate()
    server.wait()


def test_the_page_classifies_pictures_in_the_browser_as_predict_does(served, prompts, photos, browser):
    page = browser.new_page()
    asked, complaints = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.goto(served)
    page.evaluate("window.ready")
    for path, (probabilities, rejected) in expected_of(prompts, photos).items():
        page.set_input_files("#file", path)
        answer = page.evaluate("classify(document.getElementById('file').files[0])")
        # the browser decodes JPEGs and blends transparency with roundings of its own
        assert np.abs(np.array(answer["probabilities"]) - probabilities).max() < 1e-2, path
        assert page.locator("#state").text_content() in ((REJECTED,) if rejected else (NAMES[probabilities.argmax()],)), path
    assert not complaints and all(url.startswith((served, "blob:", "data:")) for url in asked), (complaints, asked)
    page.close()


def test_names_of_a_training_that_are_the_same_to_clip_are_exported_as_they_were_learned(tmp_path):
    classifier = kdpl.load(untrained_bundle(tmp_path / "out", "CoOp", ["crane", "Crane", "dog"]), "cpu")
    session = onnxruntime.InferenceSession(classifier.export_onnx(tmp_path / "model.onnx"))
    pixels = np.random.default_rng(0).random((1, 3, 64, 64), np.float32)
    (probabilities,) = session.run(None, {"pixels": pixels})
    assert probabilities.shape == (1, 3) and probabilities[0, 0] == pytest.approx(probabilities[0, 1])
