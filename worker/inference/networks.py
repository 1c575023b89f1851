"""The two network steps of a batch: segment, then classify.

A batch that fails is halved until the film that breaks it is alone; only that film carries
the error.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import cv2
import numpy as np

from schema.bundle import Manifest, Member
from worker.film.prepared import PreparedFilm
from worker.inference.engines.base import EngineError, FloatArray

#: Keeps the logit of a saturated probability finite.
_SATURATION = 1e-7


class BatchRunner(Protocol):
    """The part of an engine that inference needs; see :class:`worker.inference.engines.base.Engine`."""

    def run(self, batch: FloatArray) -> dict[str, FloatArray]:
        """Run float32 ``batch`` (batch, channels, height, width)."""


class Bundle(Protocol):
    """What the pipeline needs of a bundle; see :class:`worker.inference.bundles.LoadedBundle`."""

    @property
    def manifest(self) -> Manifest:
        """The parsed ``bundle.json``."""

    @property
    def sha256(self) -> str:
        """SHA-256 of ``bundle.json``."""

    @property
    def engines(self) -> Mapping[str, BatchRunner]:
        """Member name → engine."""

    @property
    def engine_description(self) -> dict[str, Any]:
        """Backend, version, device and precision per member."""

    @property
    def plan(self) -> dict[str, tuple[dict[str, Any], ...]]:
        """Member name → ordered preprocessing steps."""

    def close(self) -> None:
        """Release the engines."""


@dataclass(frozen=True)
class NetworkOutput:
    """What the networks say about one film.

    Attributes
    ----------
    probabilities
        (regions, height, width): mean of the segmentation members' probabilities, 0-1. The highest names a pixel's
        region; they add up to 1 where the members have a softmax.
    member_scores
        Classification member → (findings,) probabilities after temperature scaling, 0-1.
    scores
        (findings,): mean of ``member_scores``.
    spread
        (findings,): largest minus smallest of ``member_scores``, 0-1; 0 with one member.
    cam
        (findings, h, w): mean over members of the positive part of their class activation maps,
        in the networks' own scale; None when there are no classifiers.
    seconds
        ``"segment"`` and ``"classify"`` → this film's share of the time spent.
    """

    probabilities: FloatArray
    member_scores: dict[str, FloatArray]
    scores: FloatArray
    spread: FloatArray
    cam: FloatArray | None
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass
class _Film:
    """One film on its way: its tensors, what each member said, and the first error."""

    tensors: dict[str, FloatArray]
    outputs: dict[str, dict[str, FloatArray]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    error: EngineError | None = None


def infer(bundle: Bundle, films: Sequence[PreparedFilm], *, engine_batch: int = 1) -> list[NetworkOutput | EngineError]:
    """Run all members on all films.

    Parameters
    ----------
    engine_batch
        Films per call of an engine. 1 is best on a CPU; it does not depend on how many films
        were claimed together.

    Returns
    -------
    list
        For each film, in order, its output or the error that concerns this film alone.

    Raises
    ------
    EngineClosedError
        The bundle was closed: no film is to blame.
    """
    manifest = bundle.manifest
    states = [_Film(film.tensors) for film in films]
    for stage, task in (("segment", "segmentation"), ("classify", "classification")):
        for member in manifest.members:
            if member.task == task:
                _run_member(bundle.engines[member.name], member, states, engine_batch, stage)
    return [state.error or _assemble(manifest, state) for state in states]


def scale_by_temperature(probabilities: FloatArray, temperature: float) -> FloatArray:
    """Temperature scaling of sigmoid probabilities: sigmoid(logit(p) / T) (Guo et al. 2017, section 4.2)."""
    if temperature == 1.0:
        return probabilities
    clipped = np.clip(probabilities.astype(np.float64), _SATURATION, 1.0 - _SATURATION)
    logit = np.log(clipped) - np.log1p(-clipped)
    return (1.0 / (1.0 + np.exp(-logit / temperature))).astype(np.float32)


def _run_member(engine: BatchRunner, member: Member, states: list[_Film], engine_batch: int, stage: str) -> None:
    shape = (member.channels, member.height, member.width)
    usable = []
    for state in states:
        tensor = state.tensors.get(member.name)
        if state.error is None and (tensor is None or tensor.shape != shape or tensor.dtype != np.float32):
            found = "none" if tensor is None else f"{tensor.dtype} {tensor.shape}"
            state.error = EngineError(f"{member.name} needs a float32 tensor of shape {shape}, the film has {found}")
        if state.error is None:
            usable.append(state)
    for start in range(0, len(usable), engine_batch):
        chunk = usable[start : start + engine_batch]
        began = time.perf_counter()
        _run_halving(chunk, lambda part: _run_batch(engine, member, part))
        share = (time.perf_counter() - began) / len(chunk)
        for state in chunk:
            state.seconds[stage] = state.seconds.get(stage, 0.0) + share


def _run_batch(engine: BatchRunner, member: Member, states: list[_Film]) -> None:
    outputs = engine.run(np.stack([state.tensors[member.name] for state in states]))
    for index, state in enumerate(states):
        state.outputs[member.name] = {name: output[index] for name, output in outputs.items()}


def _run_halving(states: list[_Film], run: Callable[[list[_Film]], None]) -> None:
    try:
        run(states)
    except EngineError as error:
        if len(states) == 1:
            states[0].error = error
            return
        middle = len(states) // 2
        _run_halving(states[:middle], run)
        _run_halving(states[middle:], run)


def _assemble(manifest: Manifest, state: _Film) -> NetworkOutput:
    masks = [state.outputs[member.name]["probabilities"] for member in manifest.members_of("segmentation")]
    scores = {
        member.name: scale_by_temperature(state.outputs[member.name]["probabilities"], manifest.temperature)
        for member in manifest.members_of("classification")
    }
    stacked = np.stack(list(scores.values())) if scores else np.zeros((1, 0), np.float32)
    return NetworkOutput(
        probabilities=np.mean(masks, axis=0, dtype=np.float32) if masks else np.zeros((0, 0, 0), np.float32),
        member_scores=scores,
        scores=stacked.mean(axis=0),
        spread=np.ptp(stacked, axis=0),
        cam=_mean_cam([state.outputs[name]["cam"] for name in scores]),
        seconds=state.seconds,
    )


def _mean_cam(cams: list[FloatArray]) -> FloatArray | None:
    if not cams:
        return None
    height, width = cams[0].shape[1:]
    total = np.zeros_like(cams[0])
    for cam in cams:
        positive = np.maximum(cam, 0.0)
        if positive.shape[1:] != (height, width):
            positive = np.stack(
                [cv2.resize(each, (width, height), interpolation=cv2.INTER_LINEAR) for each in positive]
            )
        total += positive
    return total / np.float32(len(cams))
