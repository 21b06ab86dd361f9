"""What is exported agrees with `kdpl predict`: onnxruntime in Python and in Node, and the page in a real browser.

onnxruntime for both comes from npm, once: it stays in pytest's cache between runs.
"""

import dataclasses
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from functools import cache, partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from support import untrained_bundle

import kdpl
from kdpl.bundle import Decision, read_bundle, write_bundle
from kdpl.classifier.decoding import Decoder
from kdpl.classifier.serve.folder import PAGE, RUNTIME, RUNTIME_VERSION, agreement, read_runtime
from kdpl.classifier.serve.head import write_head
from kdpl.classifier.serve.onnx_file import OPSET, export_with_preprocessing
from kdpl.classifier.serve.preprocessing import FILTERS, with_preprocessing
from kdpl.clip.model import NotFiniteError
from kdpl.clip.preprocessing import RESIZE_MODES, Preprocessing
from kdpl.common import exits
from kdpl.common.class_names import REJECTED
from kdpl.common.images import ORIENTATION, open_image
from kdpl.datasets.emoji.scenes import draw, scenes_of
from kdpl.photos.share import main
from kdpl.students.kernel_head import KernelHead, Solved

pytestmark = pytest.mark.slow

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")
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


def test_the_model_prepares_images_as_predict_does(exported, prompts, photos):
    session = onnxruntime.InferenceSession(exported / "model.onnx")
    least = json.loads((exported / "names.json").read_text(encoding="utf-8"))["least"]
    for path, (probabilities, rejected) in expected_of(prompts, photos).items():
        found, out = session.run(["probabilities", "rejected"], {"image": np.asarray(open_image(path, least))})
        assert np.abs(found[0] - probabilities).max() < 1e-3, path
        assert bool(out[0]) == rejected
    both = {rejected for _, rejected in expected_of(prompts, photos).values()}
    assert both == {True, False}, "the threshold says something"


@cache
def preparation(mode, interpolation):
    """A model that prepares an image and does nothing else, and the decoder that it should agree with."""
    from onnx import TensorProto, helper

    preprocessing = Preprocessing((48, 48), interpolation, resize_mode=mode)
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 3, 48, 48]) for name in ("pixels", "same")]
    graph = helper.make_graph([helper.make_node("Identity", ["pixels"], ["same"])], "same", value[:1], value[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    model = with_preprocessing(model, preprocessing, "image", "pixels")
    return onnxruntime.InferenceSession(model.SerializeToString()), Decoder(preprocessing)


EDGES = st.one_of(st.integers(1, 12), st.integers(13, 700))


@pytest.mark.parametrize("mode", RESIZE_MODES)
@pytest.mark.parametrize("interpolation", FILTERS)
@settings(max_examples=30, deadline=None)
@given(height=EDGES, width=EDGES, seed=st.integers(0, 9))
@example(height=1, width=60_000, seed=0)
@example(height=60_000, width=1, seed=0)
@example(height=210, width=100, seed=0)  # Pillow 13 resizes the height first
@example(height=48, width=48, seed=0)
def test_every_pixel_that_the_model_prepares_is_that_of_the_decoder(mode, interpolation, height, width, seed):
    session, decoder = preparation(mode, interpolation)
    image = 255 * np.random.default_rng(seed).integers(0, 2, (height, width, 3), dtype=np.uint8)  # nothing but hard edges
    ((expected,),) = decoder.batches(image, 1, 0)
    assert np.array_equal((255 * session.run(None, {"image": image})[0][0]).round(), expected.pixels.numpy())


@pytest.mark.parametrize("mode", RESIZE_MODES)
def test_of_a_line_the_middle_is_read(mode):
    line = np.random.default_rng(0).integers(0, 256, (1, 60_000, 3), dtype=np.uint8)
    middle = Image.fromarray(line[:, 29_990:30_010])
    for image, cut in ((line, middle), (line.transpose(1, 0, 2), middle.transpose(Image.Transpose.TRANSPOSE))):
        target = (48, 48) if mode == "squash" else tuple(48 * edge for edge in cut.size)
        plain = cut.resize(target, Image.Resampling.BICUBIC)
        left, top = ((edge - 48) // 2 for edge in plain.size)
        expected = np.asarray(plain.crop((left, top, left + 48, top + 48))).transpose(2, 0, 1)
        session, decoder = preparation(mode, "bicubic")
        ((found,),) = decoder.batches(image, 1, 0)
        assert np.array_equal(found.pixels.numpy(), expected)
        assert np.array_equal((255 * session.run(None, {"image": image})[0][0]).round(), expected)


@settings(max_examples=3, deadline=None)
@given(height=EDGES, width=EDGES, seed=st.integers(0, 9))
@example(height=1, width=60_000, seed=0)
@example(height=9001, width=2, seed=0)
@example(height=630, width=90, seed=0)
def test_any_size_of_image_gives_the_probabilities_of_predict(height, width, seed, exported, prompts):
    session = SESSIONS.setdefault("session", onnxruntime.InferenceSession(exported / "model.onnx"))
    clf = SESSIONS.setdefault("clf", kdpl.load(prompts, "cpu"))
    image = 255 * np.random.default_rng(seed).integers(0, 2, (height, width, 3), dtype=np.uint8)
    found = session.run(["probabilities"], {"image": image})[0]
    assert np.abs(found - clf(image).numpy()).max() < 1e-5


SESSIONS: dict = {}


def test_half_precision_halves_the_file_and_its_loss_is_measured(exported, prompts, photos, tmp_path, capsys):
    whole, half = ((exported.parent / name / "model.onnx").stat().st_size for name in ("folder", "half"))
    assert half < 0.55 * whole
    clf = kdpl.load(prompts, "cpu")
    paths = sorted(str(p) for p in photos.iterdir())
    found = agreement(clf, exported.parent / "half" / "model.onnx", paths)
    assert found.photos == len(paths) == found.same and 0 < found.difference < 5e-3
    assert main([str(prompts), str(tmp_path / "x"), "--half", "--no-page", "--check", str(photos)]) == 0
    assert f"No probability differs by more than {found.difference:.5f}" in capsys.readouterr().out


def test_the_python_client_turns_composes_and_scales_as_predict_does(exported, prompts, photos):
    expected = expected_of(prompts, photos)
    command = [sys.executable, str(exported / "client.py"), *expected]
    process = subprocess.run(command, capture_output=True, text=True, check=True, env={"PATH": os.environ["PATH"]})
    lines = [line.split("\t") for line in process.stdout.splitlines()]
    for (path, name, p), (probabilities, rejected) in zip(lines, expected.values(), strict=True):
        assert name == (REJECTED if rejected else NAMES[probabilities.argmax()]), path
        assert abs(float(p) - probabilities.max()) < 1e-3


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
    for write in (classifier.export_onnx, partial(write_head, classifier), partial(export_with_preprocessing, classifier)):
        with pytest.raises(NotFiniteError, match="hold NaN or infinite values"):
            write(tmp_path / "file")
        assert not (tmp_path / "file").exists()
    bundle = classifier.bundle
    broken = {name: torch.full_like(value, float("nan")) for name, value in bundle.parameters.items()}
    with pytest.raises(NotFiniteError, match="'ctx' hold NaN"):
        write_bundle(tmp_path / "b", dataclasses.replace(bundle, parameters=broken))
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_bundle(tmp_path / "b", dataclasses.replace(bundle, results=[{"accuracy": float("nan")}]))
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
        ([plain, "--runtime", tmp_path], "lacks ort.wasm.min.mjs"),
        ([plain, "--runtime", "nowhere.tgz"], "neither a folder nor an npm package.*--no-page"),
    ):
        first, *rest = map(str, argv)
        assert main([first, str(tmp_path / "folder"), *rest]) == exits.BAD_INPUT
        assert re.search(message, capsys.readouterr().err)


def test_the_runtime_of_the_page_is_fetched_by_npm(tmp_path, monkeypatch):
    """The npm here is a script that packs what the real one would."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(OSError, match=r"there is no npm here.*--no-page"):
        read_runtime()
    package = tmp_path / "ready.tgz"
    with tarfile.open(package, "w:gz") as archive:
        for name in RUNTIME:
            member = tarfile.TarInfo(f"package/dist/{name}")
            member.size = len(name)
            archive.addfile(member, io.BytesIO(name.encode()))
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\necho no network >&2; exit 1\n")
    npm.chmod(0o755)
    with pytest.raises(OSError, match=r"cannot fetch onnxruntime-web \(no network\).*--runtime"):
        read_runtime()
    npm.write_text(f'#!/bin/sh\n[ "$1 $2" = "pack onnxruntime-web@{RUNTIME_VERSION}" ] && /bin/cp {package} got.tgz\n')
    assert read_runtime() == {name: name.encode() for name in RUNTIME}


# ------------------------------------------------------------------------------------------------------- Node, a browser


@pytest.fixture(scope="session")
def node_modules(request):
    """A folder with onnxruntime for Node and for browsers, from npm at the first run."""
    folder = request.config.cache.mkdir(f"onnxruntime-{RUNTIME_VERSION}")
    packages = [f"onnxruntime-{kind}@{RUNTIME_VERSION}" for kind in ("node", "web")]
    if not (folder / "complete").exists():
        if not (npm := shutil.which("npm")):
            pytest.skip("there is no npm to install onnxruntime with")
        command = [npm, "install", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", str(folder), *packages]
        try:  # the scripts would fetch CUDA
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        except subprocess.TimeoutExpired:
            pytest.skip("npm does not end within 300 s")
        if done.returncode:
            pytest.skip(f"npm cannot install onnxruntime: {done.stderr[-300:]}")
        (folder / "complete").touch()
    return folder / "node_modules"


def test_node_gives_the_probabilities_of_predict(exported, prompts, photos, tmp_path, node_modules):
    if not (node := shutil.which("node")):
        pytest.skip("there is no Node")
    expected = expected_of(prompts, photos)
    least = json.loads((exported / "names.json").read_text(encoding="utf-8"))["least"]
    images = []
    for i, path in enumerate(expected):
        pixels = np.asarray(open_image(path, least))
        (tmp_path / f"{i}.rgb").write_bytes(pixels.tobytes())
        images.append([str(tmp_path / f"{i}.rgb"), *pixels.shape])
    script = f"""
const ort = require({json.dumps(str(node_modules / "onnxruntime-node"))}), fs = require("fs");
(async () => {{
  const session = await ort.InferenceSession.create({json.dumps(str(exported / "model.onnx"))});
  const found = [];
  for (const [file, ...shape] of {json.dumps(images)})
  {{
    const image = new ort.Tensor("uint8", new Uint8Array(fs.readFileSync(file)), shape);
    found.push([...(await session.run({{image}})).probabilities.data]);
  }}
  console.log(JSON.stringify(found));
}})();
"""
    process = subprocess.run([node, "-e", script], capture_output=True, text=True, check=True)
    found = np.array(json.loads(process.stdout))
    assert np.abs(found - np.stack([p for p, _ in expected.values()])).max() < 1e-3


@pytest.fixture(scope="module")
def served(exported, node_modules):
    """The address of the folder's own server, with the page's runtime from npm."""
    for name, content in read_runtime(str(node_modules / "onnxruntime-web")).items():
        (exported / name).write_bytes(content)
    for name, path in PAGE.items():
        shutil.copy(path, exported / name)
    command = [sys.executable, str(exported / "serve.py"), "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, stderr=subprocess.DEVNULL)
    yield server.stdout.readline().strip()
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
