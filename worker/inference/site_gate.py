"""The gate of an engine that computes in 8 bits: the site's own films, float32 as the reference.

Phantoms and the few films of a bundle show that an engine is the network it should be. They do not show what
8 bits do to this hospital's pictures, so they approve none alone. Truth is not needed: float32 is what
the metrics of the bundle were measured with, and here an engine may only differ from it so far that
they stay true (:class:`worker.inference.parity.SiteThresholds`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from schema.bundle import Manifest, Member
from worker.inference.engines.base import Engine, FloatArray
from worker.inference.parity import Measure, ParityFigure, SiteThresholds, dice
from worker.inference.site_set import SiteFilms

Numbers = npt.NDArray[np.floating[Any]]

#: Films that the speed is measured on, after as many for warming up as there are before them.
_TIMED_FILMS = 20
_LOW_QUANTILE = 0.05


def check_site(
    engine: Engine,
    reference: Engine,
    rival: Engine,
    *,
    member: Member,
    manifest: Manifest,
    films: SiteFilms,
    limits: SiteThresholds,
) -> tuple[ParityFigure, ...]:
    """Compare ``engine`` with the float32 ``reference`` on every film, and its speed with ``rival``.

    ``rival`` is the engine that is used when this one is refused.

    Raises
    ------
    EngineError
        An engine failed on a film.
    CarinaError
        A film is damaged.
    """
    where = f"{len(films)} films of the site"
    expected, found = [], []
    seconds: dict[str, list[float]] = {"engine": [], "rival": []}
    for number, picture in enumerate(films.pictures()):
        batch = picture[np.newaxis]
        expected.append(_said(reference.run(batch), member))
        found.append(_said(engine.run(batch), member))
        if number < _TIMED_FILMS:
            # In turns, so that whatever else the machine does meets both.
            for name, timed in (("engine", engine), ("rival", rival)):
                started = time.perf_counter()
                timed.run(batch)
                seconds[name].append(time.perf_counter() - started)
    compare = _compare_masks if member.task == "segmentation" else _compare_findings
    figures = tuple(compare(np.stack(expected), np.stack(found), manifest, limits, where))
    # The quickest of many: what else the machine did can only have made a run slower.
    speed = min(seconds["rival"]) / min(seconds["engine"])
    return (*figures, ParityFigure(Measure.SPEED, rival.precision, where, speed, limits.speed))


def agreement_of_order(expected: Numbers, found: Numbers, separated: float) -> float:
    """The share of pairs that ``found`` puts in the order of ``expected``, of those further apart there.

    Parameters
    ----------
    expected, found
        (films,) probabilities.
    separated
        Pairs whose expected probabilities differ by no more are left out.

    Returns
    -------
    float
        0-1; a pair that ``found`` does not tell apart counts half. 1 where no pair is far enough apart.
    """
    first, second = np.triu_indices(len(expected), 1)
    before = expected[first] - expected[second]
    far = np.abs(before) > separated
    if not far.any():
        return 1.0
    after = np.sign(found[first] - found[second]) * np.sign(before)
    return float((after[far] + 1.0).mean() / 2.0)


def _said(outputs: dict[str, FloatArray], member: Member) -> npt.NDArray[np.generic]:
    """What is compared of a film: the label map (height, width), or the probabilities (findings,)."""
    probabilities = outputs["probabilities"][0]
    return probabilities.argmax(axis=0).astype(np.uint8) if member.task == "segmentation" else probabilities


def _compare_masks(
    expected: npt.NDArray[np.generic],
    found: npt.NDArray[np.generic],
    manifest: Manifest,
    limits: SiteThresholds,
    where: str,
) -> Iterator[ParityFigure]:
    for region in manifest.regions:
        value, name = region.value, region.name
        found_dice = [dice(one == value, other == value) for one, other in zip(expected, found, strict=True)]
        mean = limits.region_mean_dice.get(name, limits.mean_dice)
        yield ParityFigure(Measure.MEAN_DICE, name, where, float(np.mean(found_dice)), mean)
        low = limits.region_low_dice.get(name, limits.low_dice)
        yield ParityFigure(Measure.LOW_DICE, name, where, float(np.quantile(found_dice, _LOW_QUANTILE)), low)


def _compare_findings(
    expected: npt.NDArray[np.generic],
    found: npt.NDArray[np.generic],
    manifest: Manifest,
    limits: SiteThresholds,
    where: str,
) -> Iterator[ParityFigure]:
    before, after = expected.astype(np.float64), found.astype(np.float64)
    for index, finding in enumerate(manifest.findings):
        old, new = before[:, index], after[:, index]
        order = agreement_of_order(old, new, limits.separated)
        yield ParityFigure(Measure.RANKING, finding.finding, where, order, limits.ranking)
        shift = abs(float(new.mean() - old.mean()))
        yield ParityFigure(Measure.CALIBRATION, finding.finding, where, shift, limits.calibration)
        worst = float(np.abs(new - old).max())
        yield ParityFigure(Measure.PROBABILITY, finding.finding, where, worst, limits.probability)
