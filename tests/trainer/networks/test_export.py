"""Networks as portable ONNX: any batch, the same answers, nothing that only training needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("monai")
onnxruntime = pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")

from trainer.export.onnx_export import OUTPUTS, ClassificationOutputs, SegmentationOutputs, export_onnx  # noqa: E402
from trainer.networks.registry import NETWORKS, make_network  # noqa: E402


@pytest.mark.parametrize(
    ("name", "channels", "options"),
    [
        ("holste_unet", 1, {"base_width": 4, "half_size": True}),
        ("small_classifier", 1, {"base_width": 4, "guided": True}),
        pytest.param("densenet121", 3, {}, marks=pytest.mark.slow),
    ],
)
def test_exports_with_any_batch(name: str, channels: int, options: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = make_network(name, channels, 4, options)
    with torch.no_grad():
        network(torch.rand(4, channels, 64, 64))  # running statistics that are not 0 and 1
    task = NETWORKS[name].task
    module = (SegmentationOutputs if task == "segmentation" else ClassificationOutputs)(network).eval()
    path = tmp_path / "network.onnx"
    export_onnx(module, path, (channels, 64, 64), OUTPUTS[task])
    assert not any("place" in tensor.name for tensor in onnx.load(path).graph.initializer)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for batch in (1, 3):
        picture = torch.rand(batch, channels, 64, 64)
        with torch.no_grad():
            expected = module(picture)
        answers = session.run(list(OUTPUTS[task]), {"image": picture.numpy()})
        for answer, tensor in zip(answers, [expected] if task == "segmentation" else expected, strict=True):
            assert answer.shape == tuple(tensor.shape)
            # Weights are stored in half precision: a thousandth each, a few of them over a hundred layers.
            np.testing.assert_allclose(answer, tensor.numpy(), rtol=0, atol=0.02 * float(tensor.abs().max()))
