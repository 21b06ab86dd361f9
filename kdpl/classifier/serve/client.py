"""Name what is on pictures: python client.py PICTURE ... (needs numpy, pillow and onnxruntime 1.19 or later)."""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

HERE = Path(__file__).parent


def read_rgb(path: str, least: int = 0) -> np.ndarray:
    """Return a picture upright in RGB, transparency on white, 16 bits scaled to 8: (H, W, 3) uint8."""
    image = Image.open(path)
    if least:  # a large JPEG is decoded at a part of its size, as kdpl does
        image.draft(None, (least, least))
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        image = Image.fromarray(((np.asarray(image).clip(0, 65535).astype(np.uint32) + 128) // 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB"))


def on_one_line(text: str) -> str:
    """Return text with all that a terminal would obey escaped."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


if __name__ == "__main__":
    session = onnxruntime.InferenceSession(HERE / "model.onnx")
    facts = json.loads((HERE / "names.json").read_text(encoding="utf-8"))
    unread = 0
    for path in sys.argv[1:]:
        try:
            image = read_rgb(path, facts.get("least", 0))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # of Pillow's decoders
            print(f"left out: {on_one_line(path)}: {on_one_line(str(error))}", file=sys.stderr)
            unread += 1
            continue
        probabilities, *rejected = session.run(None, {"image": image})
        if not np.isfinite(probabilities).all():
            sys.exit(f"error: the probabilities of {path!r} are not numbers: the model is damaged")
        best = int(probabilities[0].argmax())
        none = bool(rejected and rejected[0][0])
        name = facts["rejected"] if none else facts["names"][best]
        print(on_one_line(path), on_one_line(name), f"{probabilities[0, best]:.4f}", sep="\t")
    sys.exit(5 if unread else 0)
