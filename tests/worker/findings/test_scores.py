from __future__ import annotations

import numpy as np
import pytest

from schema.bundle import FindingThreshold, Manifest
from worker.errors import FilmError
from worker.findings.scores import heatmap, score
from worker.inference.networks import NetworkOutput

MANIFEST = Manifest(
    name="n",
    version="1",
    created="",
    description="",
    regions=(),
    members=(),
    temperature=1.0,
    parity_films=(),
    findings=(FindingThreshold("pneumonia", 0.4), FindingThreshold("no_finding", 0.6)),
    metrics={},
    recipe={},
    data_digest="",
    files={},
)


def output(**changes) -> NetworkOutput:
    values = {
        "probabilities": np.zeros((8, 4, 4), np.float32),
        "member_scores": {"a": np.array([0.5, 0.2], np.float32), "b": np.array([0.3, 0.4], np.float32)},
        "scores": np.array([0.4, 0.3], np.float64),
        "spread": np.array([0.2, 0.2], np.float32),
        "cam": np.zeros((2, 3, 3), np.float32),
    }
    return NetworkOutput(**{**values, **changes})


def test_scores():
    first, second = score(output(), MANIFEST)
    assert (first.finding, first.positive, first.threshold) == ("pneumonia", True, 0.4)
    assert (second.finding, second.positive) == ("no_finding", False)
    assert first.members == pytest.approx({"a": 0.5, "b": 0.3})
    assert first.spread == pytest.approx(0.2)


def test_no_findings():
    empty = np.zeros(0, np.float32)
    bare = Manifest(**{**MANIFEST.__dict__, "findings": ()})
    assert score(output(member_scores={}, scores=empty, spread=empty, cam=None), bare) == []
    assert heatmap(output(cam=None), bare) is None


@pytest.mark.parametrize("bad", [np.nan, np.inf, -0.1, 1.1])
def test_impossible_probability(bad):
    with pytest.raises(FilmError) as caught:
        score(output(scores=np.array([bad, 0.5])), MANIFEST)
    assert caught.value.code == "FINDINGS_FAILED"


def test_wrong_length():
    with pytest.raises(ValueError, match="2 findings"):
        score(output(scores=np.zeros(3, np.float32)), MANIFEST)
    with pytest.raises(ValueError, match="2 findings"):
        heatmap(output(cam=np.zeros((3, 2, 2), np.float32)), MANIFEST)


def test_heatmap_scales_each_finding_by_its_maximum():
    cam = np.zeros((2, 2, 2), np.float32)
    cam[0] = [[4.0, 2.0], [-3.0, 0.0]]
    maps = heatmap(output(cam=cam), MANIFEST)
    assert maps.findings == ("pneumonia", "no_finding")
    assert maps.maps.dtype == np.uint8
    assert maps.maps[0].tolist() == [[255, 128], [0, 0]]
    assert not maps.maps[1].any()


def test_class_activation_is_grad_cam_of_a_gap_network():
    """Eq. 11-12 worked out with the analytic gradient of the probability."""
    rng = np.random.default_rng(4)
    features, weights, bias = rng.random((6, 5, 5)), rng.normal(size=(2, 6)), rng.normal(size=2)
    probability = 1 / (1 + np.exp(-(weights @ features.mean(axis=(1, 2)) + bias)))
    gradient = (probability * (1 - probability) / 25)[:, None] * weights
    grad_cam = np.maximum(np.einsum("fc,chw->fhw", gradient, features), 0)
    expected = grad_cam / np.maximum(grad_cam.max(axis=(1, 2), keepdims=True), 1e-12)
    cam = np.einsum("fc,chw->fhw", weights, features).astype(np.float32)
    assert np.abs(heatmap(output(cam=cam), MANIFEST).maps / 255 - expected).max() < 0.003


def test_not_finite_activation():
    with pytest.raises(FilmError):
        heatmap(output(cam=np.full((2, 2, 2), np.nan, np.float32)), MANIFEST)
