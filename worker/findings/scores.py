"""Network outputs to finding scores and heat maps.

A heat map is Grad-CAM (classifier paper, eq. 11-12) for networks that end in global
average pooling: there the gradient is the same at every pixel, so after ReLU and division
by the maximum Grad-CAM equals the class activation map the engine returns.
"""

from __future__ import annotations

import numpy as np

from schema.bundle import Manifest
from worker.errors import FilmError
from worker.inference.networks import NetworkOutput
from worker.results.result import FindingScore, Heatmap


def score(output: NetworkOutput, manifest: Manifest) -> list[FindingScore]:
    """One score per finding of the manifest, positive from its threshold on.

    Parameters
    ----------
    output
        ``scores``, ``spread`` and each of ``member_scores`` have shape (findings,), 0-1.
    manifest
        Names the findings, in the order of the arrays, and their thresholds.

    Raises
    ------
    FilmError
        ``FINDINGS_FAILED``: a probability is not finite or outside 0-1.
    ValueError
        An array's length is not the number of findings.
    """
    findings = manifest.findings
    for array in (output.scores, output.spread, *output.member_scores.values()):
        if array.shape != (len(findings),):
            raise ValueError(f"{len(findings)} findings need as many scores, got an array of shape {array.shape}")
        # Also false for NaN, which compares false with everything.
        if not bool(((array >= 0.0) & (array <= 1.0)).all()):
            raise FilmError("FINDINGS_FAILED", "a finding's probability is not between 0 and 1")
    return [
        FindingScore(
            finding=finding.finding,
            probability=float(output.scores[index]),
            spread=float(output.spread[index]),
            threshold=finding.threshold,
            positive=float(output.scores[index]) >= finding.threshold,
            members={name: float(values[index]) for name, values in output.member_scores.items()},
        )
        for index, finding in enumerate(findings)
    ]


def heatmap(output: NetworkOutput, manifest: Manifest) -> Heatmap | None:
    """Scale the activation maps (findings, height, width) to 0-255, each by its maximum.

    Negative activations speak against a finding and become 0 (the ReLU of eq. 12). A map
    without positive activation stays 0 everywhere. None when there are no classifiers.

    Raises
    ------
    FilmError
        ``FINDINGS_FAILED``: an activation is not finite.
    ValueError
        The first axis is not the number of findings.
    """
    cam = output.cam
    if cam is None:
        return None
    if cam.ndim != 3 or len(cam) != len(manifest.findings):
        raise ValueError(f"{len(manifest.findings)} findings need as many maps, got an array of shape {cam.shape}")
    if not np.isfinite(cam).all():
        raise FilmError("FINDINGS_FAILED", "an activation map is not finite")
    positive = np.maximum(cam.astype(np.float64), 0.0)
    peak = positive.max(axis=(1, 2), keepdims=True, initial=0.0)
    scaled = np.divide(positive, peak, out=np.zeros_like(positive), where=peak > 0.0)
    return Heatmap(
        findings=tuple(finding.finding for finding in manifest.findings),
        maps=np.rint(scaled * 255.0).astype(np.uint8),
    )
