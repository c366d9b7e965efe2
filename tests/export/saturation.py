"""Does onnxruntime's product of bytes saturate on this processor?

x86 processors without VNNI add two products of a uint8 and an int8 in 16 bits. 255 * 127 * 2 does not fit, and a file
of eight bits answers otherwise than its own arithmetic says (onnxruntime's documentation: "U8S8 saturation").
"""

from __future__ import annotations

from functools import cache

import numpy as np
from onnx import TensorProto, helper

from autolora.export.runtime import onnxruntime

REASON = "8-bit products saturate in onnxruntime on this processor: the file is not its own arithmetic here"


@cache
def saturates() -> bool:
    a = helper.make_tensor_value_info("a", TensorProto.UINT8, [1, 64])
    b = helper.make_tensor_value_info("b", TensorProto.INT8, [64, 16])
    y = helper.make_tensor_value_info("y", TensorProto.INT32, [1, 16])
    graph = helper.make_graph([helper.make_node("MatMulInteger", ["a", "b"], ["y"])], "product", [a, b], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    given = {"a": np.full((1, 64), 255, np.uint8), "b": np.full((64, 16), 127, np.int8)}
    return bool((session.run(None, given)[0] != 64 * 255 * 127).any())
