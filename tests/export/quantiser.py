"""onnxruntime's quantiser, asked as its users ask it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)


class Once(CalibrationDataReader):
    """All images in one batch."""

    def __init__(self, images: np.ndarray) -> None:
        self.left = [{"image": images}]

    def get_next(self) -> dict | None:
        return self.left.pop() if self.left else None


def quantised_file(model: Path, images: np.ndarray, form: str) -> Path:
    """`form` is QDQ (signed, a scale for each channel), QOperator (unsigned) or dynamic."""
    path = model.with_name(f"{form}.onnx")
    if form == "dynamic":
        quantize_dynamic(model, path, weight_type=QuantType.QUInt8)
        return path
    kind = QuantType.QInt8 if form == "QDQ" else QuantType.QUInt8
    quantize_static(
        model,
        path,
        Once(images),
        quant_format=QuantFormat[form],
        per_channel=form == "QDQ",
        weight_type=QuantType.QInt8,
        activation_type=kind,
        reduce_range=True,  # else the answers depend on the processor
    )
    return path
