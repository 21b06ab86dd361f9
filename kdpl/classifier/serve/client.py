"""Name what is on pictures: python client.py PICTURE ... (needs numpy, pillow and onnxruntime 1.19 or later)."""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


class Model:
    """The model of a folder that `kdpl export` has written: from a picture to probabilities."""

    def __init__(self, folder):
        self.session = onnxruntime.InferenceSession(Path(folder, "model.onnx"))
        self.facts = json.loads(Path(folder, "names.json").read_text(encoding="utf-8"))

    def __call__(self, path):
        """Return the probabilities (C) of a picture, in the order of the names, and whether it is none of these."""
        probabilities, *rejected = self.session.run(None, {"pixels": self.pixels(self.read_rgb(path))})
        return probabilities[0], bool(rejected and rejected[0][0])

    def read_rgb(self, path):
        """Return a picture upright in RGB, transparency on white, 16 bits scaled to 8."""
        image = Image.open(path)
        image.draft(None, (self.facts["least"],) * 2)  # a large JPEG is decoded at a part of its size
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I"):
            image = Image.fromarray(((np.asarray(image).clip(0, 65535).astype(np.uint32) + 128) // 257).astype(np.uint8))
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image.convert("RGB")

    def pixels(self, image):
        """Return what the model takes of a picture in RGB: the middle of a long one, resized, its centre, as (1, 3, R, R)."""
        side, longest = self.facts["side"], self.facts["longest"] * min(image.size)
        size = [min(edge, longest) for edge in image.size]
        left, top = (image.width - size[0]) // 2, (image.height - size[1]) // 2
        image = image.crop((left, top, left + size[0], top + size[1]))
        to = [side if self.facts["squash"] else side * edge // min(size) for edge in size]
        image = image.resize(to, Image.Resampling[self.facts["interpolation"].upper()])
        left, top = (round((edge - side) / 2) for edge in to)
        image = image.crop((left, top, left + side, top + side))
        return np.asarray(image, np.float32).transpose(2, 0, 1)[None] / 255


def on_one_line(text):
    """Return text with all that a terminal would obey escaped."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


if __name__ == "__main__":
    model, unread = Model(Path(__file__).parent), 0
    for path in sys.argv[1:]:
        try:
            probabilities, none = model(path)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # of Pillow's decoders
            print(f"left out: {on_one_line(path)}: {on_one_line(str(error))}", file=sys.stderr)
            unread += 1
            continue
        best = int(probabilities.argmax())
        name = model.facts["rejected"] if none else model.facts["names"][best]
        print(on_one_line(path), on_one_line(name), f"{probabilities[best]:.4f}", sep="\t")
    sys.exit(5 if unread else 0)
