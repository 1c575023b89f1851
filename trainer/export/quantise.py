"""An 8-bit twin of an exported network: its graph with QuantizeLinear and DequantizeLinear before the convolutions.

The scales are found here, at export, so that a worker needs no quantiser and no films: post-training static
quantisation by ONNX Runtime. What is open in that, decided on the packaged bundle's networks and 50 phantoms
that nothing was calibrated on, computed by OpenVINO in 8 bits with float32 elsewhere:

* **The first convolution and the heads stay in float.** It sees grey values over their whole range, and every
  error there reaches all that follows: with it in 8 bits a finding's probability moved by up to 0.078, in float
  by up to 0.008. A head is a convolution from which no other is reached: region logits and activation maps.
  Linear layers are not touched. All of these together cost almost nothing.
* **Only what goes into a convolution is quantised**, not what comes out: the ReLU or the normalisation that
  follows would be rounded twice. Transposed convolutions stay in float: in 8 bits they gained nothing.
* **Activations are unsigned with a zero point.** Holste's network normalises after its ReLU, so its activations
  lean far to one side. With signed, symmetric activations ONNX Runtime labels 0.3 % of the pixels otherwise than
  in float, but OpenVINO 9 %; with a zero point 0.15 % in either. (TensorRT takes symmetric activations only: on a
  GPU half precision is the choice.)
* **Weights** are signed, symmetric, one scale per output channel.
* **Ranges** reach from the 0.001st to the 99.999th percentile of the calibration films' activations: the
  extremes (MinMax) moved probabilities by up to 0.013 instead of 0.008, the 99.99th percentile cuts off
  the carina (Dice against float 0.79 instead of 0.97).

No twin is to be believed unseen: engines built from it pass the same parity gate as all others.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static

from trainer.export.onnx_export import read_onnx, write_onnx

#: Films of the training part whose activations set the ranges.
CALIBRATION_FILMS = 64
_PERCENTILE = 99.999
_QUANTISED = ("Conv",)
_CONVOLUTIONS = ("Conv", "ConvTranspose")


def quantise(source: Path, target: Path, pictures: Collection[npt.NDArray[np.floating]]) -> None:
    """Write the 8-bit twin of the network in ``source`` to ``target``.

    Parameters
    ----------
    source
        A file of :func:`trainer.export.onnx_export.export_onnx`.
    target
        Its twin: same input and outputs, float32 both.
    pictures
        Calibration films, each (C, H, W), preprocessed: of the training part, for the twin is measured on others.
    """
    model = read_onnx(source)
    # What ONNX Runtime asks for before it quantises, folding and shapes, the exporter has done.
    onnx.helper.set_model_props(model, {"onnx.quant.pre_process": "onnxruntime.quant"})
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        quantised = Path(folder) / "quantised.onnx"
        quantize_static(
            model,
            quantised,
            _Films(pictures),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(_QUANTISED),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=sorted(kept_in_float(model)),
            calibrate_method=CalibrationMethod.Percentile,
            extra_options={
                "CalibPercentile": _PERCENTILE,
                # One film after the other, whatever the method: else all films' activations lie in memory at once.
                "CalibStridedMinMax": 1,
                "OpTypesToExcludeOutputQuantization": list(_QUANTISED),
                "WeightSymmetric": True,
            },
        )
        twin = onnx.load(quantised)
    write_onnx(twin, target)


def kept_in_float(model: onnx.ModelProto) -> set[str]:
    """Names of the convolutions before which there is none, and of those after which there is none."""
    nodes = [(node.name, node.op_type, list(node.input), list(node.output)) for node in model.graph.node]
    turned = [(name, kind, outputs, inputs) for name, kind, inputs, outputs in reversed(nodes)]
    return _first_convolutions(nodes) | _first_convolutions(turned)


def _first_convolutions(nodes: Iterable[tuple[str, str, list[str], list[str]]]) -> set[str]:
    """Convolutions that depend on no other's result.

    ``nodes`` are (name, kind, inputs, outputs), each behind those it depends on.
    """
    first, behind = set(), set[str]()
    for name, kind, inputs, outputs in nodes:
        dependent = not behind.isdisjoint(inputs)
        if kind in _CONVOLUTIONS and not dependent:
            first.add(name)
        if kind in _CONVOLUTIONS or dependent:
            behind.update(outputs)
    return first


class _Films(CalibrationDataReader):  # type: ignore[misc]
    """Films as ONNX Runtime asks for them."""

    def __init__(self, pictures: Collection[npt.NDArray[np.floating]]) -> None:
        self._pictures = list(pictures)
        self.set_range(0, len(self._pictures))

    def __len__(self) -> int:
        return len(self._pictures)

    def set_range(self, start_index: int, end_index: int) -> None:
        self._waiting = iter(self._pictures[start_index:end_index])

    def get_next(self) -> dict[str, Any] | None:
        picture = next(self._waiting, None)
        return None if picture is None else {"image": np.asarray(picture, np.float32)[np.newaxis]}
