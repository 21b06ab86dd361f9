"""The preparation of an image as nodes of an ONNX model, and weights stored in half precision.

ONNX has an operator that resizes, but the runtimes' results differ from Pillow's by some grey levels. Here it is two matrix
products with Pillow's own weights, and Pillow's rounding after each.
"""

from typing import Any

import numpy as np

from kdpl.clip.inputs import Preprocessing
from kdpl.common.images import LONGEST

HALVED = 1024  # numbers that a tensor has at least to be stored in half precision


class Nodes:
    """Nodes of a graph, named one after the other, with integer constants."""

    def __init__(self):
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def add(self, kind: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """Add a node and return the name of its output."""
        from onnx import helper

        output = output or f"prepared_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [output], name=f"prepare_{len(self.nodes)}", **attributes))
        return output

    def cast(self, kind: str, name: str) -> str:
        from onnx import TensorProto

        return self.add("Cast", name, to=getattr(TensorProto, kind))

    def constant(self, *values: int) -> str:
        return self._constant(np.array(values, np.int64))

    def number(self, value: float) -> str:
        return self._constant(np.array(value, np.float32))

    def _constant(self, value: np.ndarray) -> str:
        from onnx import numpy_helper

        name = f"prepare_constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(value, name))
        return name

    def middles(self, start: str, end: str) -> str:
        """Return the middles of the pixels from `start` to `end`, in fp32."""
        places = self.add("Range", *(self.add("Squeeze", edge) for edge in (start, end)), self._constant(np.array(1, np.int64)))
        return self.add("Add", self.cast("FLOAT", places), self.number(0.5))


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


def resize_weights(n: Nodes, size: str, to: str, offset: str, r: str, interpolation: str) -> str:
    """Return the weights (R, size) that resize an edge to `to` pixels and keep R of them from `offset` on."""
    scale = n.add("Div", n.cast("FLOAT", size), n.cast("FLOAT", to))
    centres = n.add("Mul", n.middles(offset, n.add("Add", offset, r)), scale)  # (R)
    places = n.middles(n.constant(0), size)  # (size)
    away = n.add("Sub", n.add("Unsqueeze", places, n.constant(0)), n.add("Unsqueeze", centres, n.constant(1)))  # (R, size)
    widths = n.add("Max", scale, n.number(1.0))  # of the filter, in pixels: wider if the edge gets shorter
    weights = FILTERS[interpolation](n, n.add("Abs", n.add("Div", away, widths)))
    return n.add("Div", weights, n.add("ReduceSum", weights, n.constant(1), keepdims=1))


def rounded(n: Nodes, values: str) -> str:
    """Return values as whole numbers of 0 to 255."""
    return n.add("Clip", n.add("Floor", n.add("Add", values, n.number(0.5))), n.number(0.0), n.number(255.0))


def with_preprocessing(model: Any, preprocessing: Preprocessing, image: str, pixels: str) -> Any:
    """Return a model that takes an image `(H, W, 3)` in uint8 in place of pixels `(1, 3, R, R)`.

    The steps are those of `Decoder`: what is extremely long is cut; the shorter edge is resized to R and the centre is
    cropped, or both edges are resized to R (`Preprocessing.resize_mode`). The width is resized first. Some versions of Pillow
    begin with the height if that takes fewer operations, which changes the pixels of hard edges by some grey levels.

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
    resized = [r, r] if squash else [n.add("Div", n.add("Mul", size, r), short) for size in kept]
    weights = []
    for size, to in zip(kept, resized, strict=True):
        # round((to - R) / 2), halves to the even number, as Python rounds
        half = n.add("Div", n.cast("FLOAT", n.add("Sub", to, r)), n.number(2.0))
        offset = n.cast("INT64", n.add("Round", half))
        weights.append(resize_weights(n, size, to, offset, r, preprocessing.interpolation))
    rows, columns = weights  # (R, H), (R, W)
    wide = rounded(n, n.add("MatMul", n.cast("FLOAT", planes), n.add("Transpose", columns, perm=[1, 0])))  # (1, 3, H, R)
    square = rounded(n, n.add("MatMul", rows, wide))  # (1, 3, R, R)
    n.add("Div", square, n.number(255.0), output=pixels)
    graph = model.graph
    model_nodes = list(graph.node)
    prepared = helper.make_graph([*n.nodes, *model_nodes], graph.name, [], [])
    del graph.node[:]
    graph.node.extend(prepared.node)
    graph.initializer.extend(n.constants)
    del graph.input[:]
    graph.input.append(helper.make_tensor_value_info(image, TensorProto.UINT8, ["H", "W", 3]))
    for output in graph.output:
        output.type.tensor_type.shape.dim[0].dim_value = 1
    return model


def halve_weights(model: Any) -> None:
    """Store the large weights of a model in half precision, in place; they are cast to fp32 when the model is loaded."""
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
    copies = [helper.make_node("Identity", ["x"], ["y"]) for _ in nodes]
    for copy, node in zip(copies, nodes, strict=True):
        copy.CopyFrom(node)
    del model.graph.node[:]
    model.graph.node.extend(copies)


def _is_large(weight: Any) -> bool:
    from onnx import TensorProto

    return weight.data_type == TensorProto.FLOAT and int(np.prod(weight.dims)) >= HALVED


def _halve(weight: Any, name: str) -> None:
    from onnx import numpy_helper

    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight).astype(np.float16), name))
