"""The preparation of an image as nodes of an ONNX model, and weights stored in half precision.

ONNX has an operator that resizes, but the runtimes' results differ from Pillow's by some grey levels. Here it is two matrix
products in whole numbers, with Pillow's own weights and rounding and in the order of the Pillow that is installed, so that
every pixel is the same.
"""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import PIL

from kdpl.clip.preprocessing import Preprocessing
from kdpl.common.images import LONGEST

CHOOSES_ORDER = int(PIL.__version__.partition(".")[0]) >= 13  # whether Pillow may resize the height first
PRECISION = 22  # bits of Pillow's weights behind the point
DIGITS = 3  # that hold them, and a bit before the point
HALVED = 1024  # numbers that a tensor has at least to be stored in half precision


class Nodes:
    """Nodes of a graph and their constants, named one after the other."""

    def __init__(self):
        self.nodes: list[Any] = []
        self._numbers = itertools.count()
        self.constants: list[Any] = []

    def add(self, kind: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """Add a node and return the name of its output."""
        from onnx import helper

        name = f"prepared_{next(self._numbers)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [output or name], name=name, **attributes))
        return output or name

    def either(self, condition: str, then: Callable[[], str], otherwise: Callable[[], str]) -> str:
        """Add a node that computes one of two images in uint8, and return the name of its output."""
        from onnx import TensorProto, helper

        graphs, before = [], self.nodes
        for branch in (then, otherwise):
            self.nodes = []
            value = helper.make_tensor_value_info(branch(), TensorProto.UINT8, None)
            graphs.append(helper.make_graph(self.nodes, f"branch_of_{value.name}", [], [value]))
        self.nodes = before
        return self.add("If", condition, then_branch=graphs[0], else_branch=graphs[1])

    def cast(self, kind: str, name: str) -> str:
        from onnx import TensorProto

        return self.add("Cast", name, to=getattr(TensorProto, kind))

    def number(self, value: Any, kind: type = np.float64) -> str:
        """Add a constant and return its name."""
        from onnx import numpy_helper

        name = f"prepare_constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.array(value, kind), name))
        return name

    def constant(self, *values: int) -> str:
        return self.number(values, np.int64)

    def nearest(self, values: str) -> str:
        return self.add("Floor", self.add("Add", values, self.number(0.5)))

    def middles(self, start: str, end: str) -> str:
        """Return the middles of the pixels from `start` to `end`."""
        places = self.add("Range", *(self.add("Squeeze", edge) for edge in (start, end)), self.number(1, np.int64))
        return self.add("Add", self.cast("DOUBLE", places), self.number(0.5))


def cubic(n: Nodes, x: str) -> str:
    """Return Pillow's bicubic filter (a = -0.5) of distances."""
    square = n.add("Mul", x, x)
    near = n.add("Add", n.add("Mul", n.add("Sub", n.add("Mul", x, n.number(1.5)), n.number(2.5)), square), n.number(1.0))
    far = n.add("Add", n.add("Mul", n.add("Sub", x, n.number(5.0)), x), n.number(8.0))
    far = n.add("Mul", n.add("Sub", n.add("Mul", far, x), n.number(4.0)), n.number(-0.5))
    outside = n.add("Where", n.add("Less", x, n.number(2.0)), far, n.number(0.0))
    return n.add("Where", n.add("Less", x, n.number(1.0)), near, outside)


def linear(n: Nodes, x: str) -> str:
    """Return Pillow's bilinear filter of distances."""
    return n.add("Max", n.add("Sub", n.number(1.0), x), n.number(0.0))


FILTERS = {"bicubic": cubic, "bilinear": linear}


def resize_weights(n: Nodes, size: str, to: str, offset: str, r: str, interpolation: str) -> list[str]:
    """Return the weights (R, size) that resize an edge to `to` pixels and keep R of them from `offset` on.

    They are whole numbers, as Pillow has them, in digits of the base 256 from -128 to 127, the highest first.
    """
    scale = n.add("Div", n.cast("DOUBLE", size), n.cast("DOUBLE", to))
    centres = n.add("Mul", n.middles(offset, n.add("Add", offset, r)), scale)  # (R)
    places = n.middles(n.constant(0), size)  # (size)
    away = n.add("Sub", n.add("Unsqueeze", places, n.constant(0)), n.add("Unsqueeze", centres, n.constant(1)))  # (R, size)
    widths = n.add("Max", scale, n.number(1.0))  # of the filter, in pixels: wider if the edge gets shorter
    weights = FILTERS[interpolation](n, n.add("Abs", n.add("Div", away, widths)))
    shares = n.add("Div", weights, n.add("ReduceSum", weights, n.constant(1), keepdims=1))
    whole = n.add("Mul", shares, n.number(2.0**PRECISION))
    left = n.add("Mul", n.nearest(n.add("Abs", whole)), n.add("Sign", whole))
    digits = []
    for _ in range(DIGITS - 1):
        carried = n.nearest(n.add("Mul", left, n.number(1 / 256)))
        digits.insert(0, n.add("Sub", left, n.add("Mul", carried, n.number(256.0))))
        left = carried
    return [n.cast("UINT8", n.add("Add", digit, n.number(128.0))) for digit in (left, *digits)]


def resized(n: Nodes, products: list[str]) -> str:
    """Return pixels in uint8 from the products of pixels and digits, rounded and clipped as Pillow does."""
    total, *others = products
    for product in others:
        total = n.add("Add", n.add("Mul", total, n.number(256, np.int32)), product)
    positive = n.add("Max", n.add("Add", total, n.number(1 << (PRECISION - 1), np.int32)), n.number(0, np.int32))
    return n.cast("UINT8", n.add("Min", n.add("Div", positive, n.number(1 << PRECISION, np.int32)), n.number(255, np.int32)))


def with_preprocessing(model: Any, preprocessing: Preprocessing, image: str, pixels: str) -> Any:
    """Return a model that takes an image `(H, W, 3)` in uint8 in place of pixels `(1, 3, R, R)`.

    The steps are those of `Decoder`: what is extremely long is cut; the shorter edge is resized to R and the centre is
    cropped, or both edges are resized to R (`Preprocessing.resize_mode`). Pillow resizes the width first; from version 13 on
    the height, if that is shortened by more than twice as many pixels.

    Args:
        model: an ONNX model whose input is `pixels`.
        image: name of the new input.
    """
    from onnx import TensorProto, helper

    if preprocessing.interpolation not in FILTERS:
        raise ValueError(f"The interpolation '{preprocessing.interpolation}' cannot be exported: {', '.join(FILTERS)} can.")
    side, n = preprocessing.size[0], Nodes()
    two, zero, r = n.constant(2), n.constant(0), n.constant(side)
    shape = n.add("Shape", image)
    sizes = [n.add("Slice", shape, n.constant(i), n.constant(i + 1)) for i in (0, 1)]  # H, W
    longest = n.add("Mul", n.add("Min", *sizes), n.constant(LONGEST))
    starts = [n.add("Div", n.add("Max", n.add("Sub", size, longest), zero), two) for size in sizes]
    kept = [n.add("Min", size, longest) for size in sizes]
    ends = [n.add("Add", start, size) for start, size in zip(starts, kept, strict=True)]
    axes = n.constant(0, 1)
    cut = n.add("Slice", image, n.add("Concat", *starts, axis=0), n.add("Concat", *ends, axis=0), axes)
    planes = n.add("Unsqueeze", n.add("Transpose", cut, perm=[2, 0, 1]), zero)  # (1, 3, H, W)
    short = n.add("Min", *kept)
    squash = preprocessing.resize_mode == "squash"
    targets = [r, r] if squash else [n.add("Div", n.add("Mul", size, r), short) for size in kept]
    weights = []
    for size, to in zip(kept, targets, strict=True):
        # round((to - R) / 2), halves to the even number, as Python rounds
        half = n.add("Div", n.cast("DOUBLE", n.add("Sub", to, r)), n.number(2.0))
        offset = n.cast("INT64", n.add("Round", half))
        weights.append(resize_weights(n, size, to, offset, r, preprocessing.interpolation))
    rows, columns = weights  # digits (R, H) and (R, W)
    columns = [n.add("Transpose", digit, perm=[1, 0]) for digit in columns]
    byte, digit = n.number(0, np.uint8), n.number(128, np.uint8)  # what stands for zero

    def widths(planes: str) -> str:
        return resized(n, [n.add("MatMulInteger", planes, column, byte, digit) for column in columns])

    def heights(planes: str) -> str:
        return resized(n, [n.add("MatMulInteger", row, planes, digit, byte) for row in rows])

    if CHOOSES_ORDER:
        lost = [n.add("Sub", size, to) for size, to in zip(kept, targets, strict=True)]
        much_height = n.add("Greater", lost[0], n.add("Max", n.add("Mul", lost[1], two), zero))
        square = n.either(much_height, lambda: widths(heights(planes)), lambda: heights(widths(planes)))  # (1, 3, R, R)
    else:
        square = heights(widths(planes))
    n.add("Div", n.cast("FLOAT", square), n.number(255.0, np.float32), output=pixels)
    graph = model.graph
    _replace_nodes(graph, [*n.nodes, *graph.node])
    graph.initializer.extend(n.constants)
    del graph.input[:]
    graph.input.append(helper.make_tensor_value_info(image, TensorProto.UINT8, ["H", "W", 3]))
    for output in graph.output:
        output.type.tensor_type.shape.dim[0].dim_value = 1
    return model


def halve_weights(model: Any) -> None:
    """Store the large weights of a model in half precision, in place; they are cast to fp32 when the model is loaded.

    Raises:
        ValueError: a weight is larger than half precision holds.
    """
    from onnx import TensorProto, helper

    nodes = []

    def cast(name: str) -> Any:
        return helper.make_node("Cast", [f"{name}_half"], [name], name=f"{name}_cast", to=TensorProto.FLOAT)

    for weight in model.graph.initializer:
        if _is_large(weight):
            nodes.append(cast(weight.name))
            _halve(weight, f"{weight.name}_half")
    for node in model.graph.node:
        nodes.append(node)
        values = [attribute.t for attribute in node.attribute if node.op_type == "Constant" and attribute.name == "value"]
        if values and _is_large(values[0]):
            name = node.output[0]
            nodes.append(cast(name))
            _halve(values[0], "")
            node.output[0] = f"{name}_half"
    _replace_nodes(model.graph, nodes)


def _replace_nodes(graph: Any, nodes: list[Any]) -> None:
    from onnx import helper

    copies = helper.make_graph(nodes, graph.name, [], []).node  # some of the nodes are the graph's own
    del graph.node[:]
    graph.node.extend(copies)


def _is_large(weight: Any) -> bool:
    from onnx import TensorProto

    return weight.data_type == TensorProto.FLOAT and int(np.prod(weight.dims)) >= HALVED


def _halve(weight: Any, name: str) -> None:
    from onnx import numpy_helper

    values = numpy_helper.to_array(weight)
    if (largest := np.abs(values).max()) > np.finfo(np.float16).max:
        raise ValueError(
            f"'{weight.name or 'a constant'}' of the model has values up to {largest:.4g}, and half precision ends at 65,504: "
            "export it without --half."
        )
    weight.CopyFrom(numpy_helper.from_array(values.astype(np.float16), name))
