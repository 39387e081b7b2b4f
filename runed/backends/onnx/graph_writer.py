"""Writes an ONNX graph: a small file with the nodes, and a large one with the weights, from which the engine maps them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Self

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

CONTRIB = "com.microsoft"
"""The domain of ONNX Runtime's own operators."""

_OPSETS = {"": 17, CONTRIB: 1}
_IR_VERSION = 8
"""The version of the file format that belongs to the opset 17."""

_ALIGNMENT = 4096
"""Bytes to which a weight is aligned in its file, so that the engine can map it."""


class GraphWriter:
    """A graph that grows node by node. Each value has a name, which the methods return.

    Args:
        weights: The file to write the weights to. It is made, and lies beside the graph.

    Raises:
        OSError: It cannot be made.
    """

    def __init__(self, weights: Path) -> None:
        self._weights = weights
        self._file = weights.open("wb")
        self._nodes: list[onnx.NodeProto] = []
        self._tensors: list[TensorProto] = []
        self._constants: set[str] = set()
        self._count = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def op(self, kind: str, *inputs: str, domain: str = "", **attributes: Any) -> str:  # noqa: ANN401 # as ONNX takes them
        """Add a node with one output. Return the name of the output.

        Args:
            kind: The operator.
            *inputs: The names of its inputs; "" for one that is left out.
            domain: The domain of the operator.
            **attributes: Its attributes.
        """
        return self.ops(kind, *inputs, domain=domain, outputs=1, **attributes)[0]

    def ops(self, kind: str, *inputs: str, outputs: int, domain: str = "", **attributes: Any) -> list[str]:  # noqa: ANN401 # as `op`
        """Add a node as `op` does, with several outputs. Return their names."""
        self._count += 1
        name = f"{kind}_{self._count}"
        names = [f"{name}_{number}" for number in range(outputs)]
        self._nodes.append(helper.make_node(kind, inputs, names, name=name, domain=domain, **attributes))
        return names

    def choose(self, condition: str, then: Callable[[], str], otherwise: Callable[[], str]) -> str:
        """Add a node that computes one of two branches. Return the name of its output.

        Args:
            condition: The name of a boolean.
            then: Adds the nodes for True, and returns the name of their output, in float32. They may use all other values.
            otherwise: The same for False.
        """
        return self.op("If", condition, then_branch=self._branch(then), else_branch=self._branch(otherwise))

    def _branch(self, add: Callable[[], str]) -> onnx.GraphProto:
        outside, self._nodes = self._nodes, []
        output = add()
        inside, self._nodes = self._nodes, outside
        return helper.make_graph(
            inside, f"branch_{output}", [], [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)]
        )

    def constant(self, value: int | list[int]) -> str:
        """Return the name of a 64-bit number, or of a list of them. It is added once."""
        name = f"constant_{value}"
        if name not in self._constants:
            self._constants.add(name)
            values, shape = (value, [len(value)]) if isinstance(value, list) else ([value], [])
            self._tensors.append(helper.make_tensor(name, TensorProto.INT64, shape, values))
        return name

    def weight(self, name: str, array: NDArray[Any]) -> str:
        """Add a weight. Return its name."""
        return self.weight_in_parts(name, array.shape, [array])

    def weight_in_parts(self, name: str, shape: Iterable[int], parts: Iterable[NDArray[Any]]) -> str:
        """Add a weight that comes in parts of some rows each, so that it is never in memory as a whole. Return its name.

        Args:
            name: Its name.
            shape: Its shape.
            parts: Its values, in float32 or float16.

        Raises:
            OSError: It cannot be written.
        """
        self._file.write(bytes(-self._file.tell() % _ALIGNMENT))
        start, dtype = self._file.tell(), np.dtype(np.float32)
        for part in parts:
            dtype = part.dtype
            self._file.write(np.ascontiguousarray(part).data)
        place = {"location": self._weights.name, "offset": start, "length": self._file.tell() - start}
        tensor = TensorProto(name=name, dims=shape, data_type=helper.np_dtype_to_tensor_dtype(dtype))
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in place.items():
            tensor.external_data.add(key=key, value=str(value))
        self._tensors.append(tensor)
        return name

    def write(self, path: Path, inputs: Iterable[str], output: str, dim: int) -> None:
        """Write the graph.

        Args:
            path: The file, in the directory of the weights.
            inputs: The names of the inputs, each (texts, tokens) in int32.
            output: The name of the output, (texts, dim) in float32.
            dim: The number of values of a vector.

        Raises:
            OSError: It cannot be written.
        """
        shape = ["texts", "tokens"]
        graph = helper.make_graph(
            self._nodes,
            "encoder",
            [helper.make_tensor_value_info(name, TensorProto.INT32, shape) for name in inputs],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["texts", dim])],
            self._tensors,
        )
        opsets = [helper.make_opsetid(domain, version) for domain, version in _OPSETS.items()]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION, producer_name="runed")
        path.write_bytes(model.SerializeToString())
