"""Probabilities to label maps: winner takes all, then the rules of Holste et al., section 2.3.

The paper's rules, on the softmax probabilities at the network's grid:

1. Only when winner-takes-all shows no carina: lower the threshold at which a pixel counts
   as carina over a ladder (0.25 ... 0.0005) and take the one that gives the largest carina
   inside 5-75 pixels. If none does, the carina stays missing.
2. For every film keep the carina's largest connected component and give each removed pixel
   the most confident of the other classes.

What the paper leaves open, decided here:

* Components are 8-connected: at 256 x 256 a carina is a few pixels and often diagonal.
  Of components of equal size, the one with more carina probability is kept.
* A pixel counts from the threshold on (``>=``), and then is carina whatever class won it.
* The size that must lie inside the range is that of the largest component, because that is
  the carina the film ends up with: five scattered pixels are not a carina of five pixels.
  Both ends of the range belong to it; of equal sizes the higher threshold is taken.
* The range was observed at 256 x 256 and is scaled by area on any other grid.
* Equal probabilities go to the class that comes first.

With ``carina_core`` a winning carina larger than the range is cut down to its most confident pixels: the threshold
rises until the largest component is inside. The paper does not do that. It is for networks that learned the carina
from a rule, with a class weight: unsure of its height on the midline, they draw a tall one about the right place.

The paper also suggests the same clean-up for every class: ``clean_all_classes``. A pixel
removed from a class never returns to it and moves on to its next most confident class,
until every class but background is in one piece. Pieces that meet behind a region lying over
them are one, as for the flags (:data:`worker.findings.flag_rules.CONTINUES_BEHIND`): the
mediastinum has a part on either side of the spine. The background is not cleaned: on a
normal film it lies on both sides of the patient. Nor are classes that join both sides of the
body, as one of both lungs. The carina is settled first, so this
never adds a carina pixel.

A region set without a carina, or of any other size, passes through the same code.
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from schema.regions import MERGED, Region, RegionDefinition
from worker.errors import FilmError
from worker.findings.flag_rules import CONTINUES_BEHIND
from worker.findings.shapes import CONNECTIVITY
from worker.results.result import LabelMap, Segmentation

FloatArray = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

#: Pixels of the grid on which the paper observed its range of carina sizes.
REFERENCE_GRID_PIXELS = 256 * 256


@dataclass(frozen=True)
class PostprocessSettings:
    """What a bundle's manifest may say about post-processing; the defaults are the paper's.

    ``carina_thresholds`` are probabilities (0-1), strictly falling;
    ``carina_minimum_pixels``/``carina_maximum_pixels`` are counted on a 256 x 256 grid.
    ``carina_core`` and ``clean_all_classes`` turn on what the module says of them.
    """

    carina_thresholds: tuple[float, ...] = (0.25, 0.1, 0.05, 0.01, 0.005, 0.001, 0.0005)
    carina_minimum_pixels: float = 5.0
    carina_maximum_pixels: float = 75.0
    carina_core: bool = False
    clean_all_classes: bool = False

    def __post_init__(self) -> None:
        ladder = self.carina_thresholds
        if any(not 0.0 < threshold < 1.0 for threshold in ladder):
            raise ValueError("carina_thresholds must lie between 0 and 1")
        if any(later >= earlier for earlier, later in itertools.pairwise(ladder)):
            raise ValueError("carina_thresholds must fall from one to the next")
        if not 0.0 < self.carina_minimum_pixels <= self.carina_maximum_pixels:
            raise ValueError("carina_minimum_pixels must be positive and not above carina_maximum_pixels")

    @classmethod
    def from_manifest(cls, postprocess: Mapping[str, Any]) -> PostprocessSettings:
        """Read a manifest's ``postprocess`` table; absent keys keep the paper's values.

        Raises
        ------
        ValueError
            A key is unknown (the nearest known one is named) or a value has the wrong type
            or range.
        """
        known = [field.name for field in fields(cls)]
        for key in postprocess:
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
                raise ValueError(f"postprocess has no setting {key!r}; did you mean {near!r}?")
        values = dict(postprocess)
        for key in ("carina_core", "clean_all_classes"):
            if not isinstance(values.get(key, False), bool):
                raise ValueError(f"postprocess: {key} must be true or false")
        try:
            if "carina_thresholds" in values:
                values["carina_thresholds"] = tuple(float(threshold) for threshold in values["carina_thresholds"])
            for key in ("carina_minimum_pixels", "carina_maximum_pixels"):
                if key in values:
                    values[key] = float(values[key])
        except (TypeError, ValueError):
            raise ValueError("postprocess: the carina settings must be numbers") from None
        return cls(**values)

    def carina_range(self, grid: tuple[int, int]) -> tuple[float, float]:
        """Smallest and largest reasonable carina in pixels of a (height, width) grid."""
        scale = grid[0] * grid[1] / REFERENCE_GRID_PIXELS
        return self.carina_minimum_pixels * scale, self.carina_maximum_pixels * scale


def postprocess(
    probabilities: FloatArray, regions: Sequence[RegionDefinition], settings: PostprocessSettings
) -> Segmentation:
    """Winner-takes-all and cleaned label maps of one film.

    Parameters
    ----------
    probabilities
        float32 of shape (regions, height, width), 0-1, in the order of ``regions``.
    regions
        The bundle's regions; the carina is the one named so, if any.
    settings
        The bundle's post-processing.

    Returns
    -------
    Segmentation
        ``carina_threshold`` is None unless the ladder found the carina;
        ``repaired_pixels`` counts pixels whose label differs between the two maps.

    Raises
    ------
    FilmError
        ``FINDINGS_FAILED``: a probability is not finite.
    ValueError
        The probabilities' first axis and ``regions`` differ in length.
    """
    if probabilities.ndim != 3 or len(probabilities) != len(regions):
        raise ValueError(f"{len(regions)} regions need as many maps, got an array of shape {probabilities.shape}")
    if not np.isfinite(probabilities).all():
        raise FilmError("FINDINGS_FAILED", "the network's probabilities are not all finite")
    winners = _winner_takes_all(probabilities)
    cleaned = winners.copy()
    names = [region.name for region in regions]
    carina = names.index(Region.CARINA) if Region.CARINA in names else None
    threshold = None
    if carina is not None:
        threshold = _settle_carina(cleaned, probabilities, carina, settings)
    if settings.clean_all_classes:
        background = names.index(Region.BACKGROUND) if Region.BACKGROUND in names else None
        cleanable = {
            label: [names.index(over) for over in CONTINUES_BEHIND.get(name, ()) if over in names]
            for label, name in enumerate(names)
            if label not in (carina, background) and name not in MERGED
        }
        _clean_classes(cleaned, probabilities, cleanable, carina)
    values = np.array([region.value for region in regions], np.uint8)
    return Segmentation(
        raw=values[winners],
        cleaned=values[cleaned],
        carina_threshold=threshold,
        repaired_pixels=int(np.count_nonzero(winners != cleaned)),
    )


def largest_component(mask: Mask, weight: FloatArray, over: Mask | None = None) -> Mask:
    """The largest 8-connected component of ``mask``; of equal ones that with more ``weight``.

    All arrays have shape (height, width). An empty mask stays empty. Components that touch the same component of
    ``over`` (what lies over the region) are one.
    """
    joined = mask if over is None else mask | over
    count, labels = cv2.connectedComponents(joined.view(np.uint8), connectivity=CONNECTIVITY)
    if count <= 2:
        return mask
    areas = np.bincount(labels[mask], minlength=count)
    candidates = np.flatnonzero(areas == areas.max())
    if len(candidates) > 1:
        weights = np.bincount(labels[mask], weights=weight[mask], minlength=count)
        candidates = candidates[[int(np.argmax(weights[candidates]))]]
    result: Mask = (labels == candidates[0]) & mask
    return result


def _winner_takes_all(probabilities: FloatArray) -> LabelMap:
    maps, height, width = probabilities.shape
    if maps == 1:
        return np.zeros((height, width), np.uint8)
    flat = np.ascontiguousarray(probabilities).reshape(maps, -1)
    return cv2.reduceArgMax(flat, 0).reshape(height, width).astype(np.uint8)


def _settle_carina(
    classes: LabelMap, probabilities: FloatArray, carina: int, settings: PostprocessSettings
) -> float | None:
    """Leave at most one carina in ``classes``, in place; the ladder's threshold if it was needed."""
    mask = classes == carina
    if mask.any():
        kept = largest_component(mask, probabilities[carina])
        if settings.carina_core:
            kept = _core(kept, probabilities[carina], settings)
        _refill(classes, mask & ~kept, probabilities, [carina])
        return None
    threshold, found = _climb_down(probabilities[carina], settings)
    if found is not None:
        classes[found] = carina
    return threshold


def _core(carina: Mask, probability: FloatArray, settings: PostprocessSettings) -> Mask:
    """The most confident component of a carina that is too large; a carina in range as it is."""
    _, largest = settings.carina_range(carina.shape)
    most = int(largest)
    values = np.sort(probability[carina])[::-1]
    if len(values) <= max(most, 1):
        return carina
    # The lowest threshold that leaves no more; of equal values all stay or none, unless they are the highest.
    threshold = values[:most][values[:most] > values[most]].min(initial=values[0])
    return largest_component(carina & (probability >= threshold), probability)


def _climb_down(probability: FloatArray, settings: PostprocessSettings) -> tuple[float | None, Mask | None]:
    """The ladder's threshold with the largest carina in range, and that carina."""
    height, width = probability.shape
    smallest, largest = settings.carina_range((height, width))
    best: tuple[int, float | None, Mask | None] = (0, None, None)
    for threshold in settings.carina_thresholds:
        mask = probability >= threshold
        if not mask.any():
            continue
        component = largest_component(mask, probability)
        size = int(np.count_nonzero(component))
        if size > largest:
            # Masks only grow as the threshold falls, and so does their largest component.
            break
        if size >= smallest and size > best[0]:
            best = (size, threshold, component)
    return best[1], best[2]


def _refill(classes: LabelMap, where: Mask, probabilities: FloatArray, excluded: Sequence[int]) -> None:
    """Give the pixels ``where`` the most confident class outside ``excluded``, in place."""
    rows, columns = np.nonzero(where)
    if rows.size:
        candidates = probabilities[:, rows, columns]
        candidates[list(excluded)] = -np.inf
        classes[rows, columns] = candidates.argmax(axis=0)


def _clean_classes(
    classes: LabelMap, probabilities: FloatArray, cleanable: Mapping[int, Sequence[int]], carina: int | None
) -> None:
    """Bring every class of ``cleanable`` (class → the classes that lie over it) into one piece, in place.

    Terminates: each pass takes at least one (pixel, class) pair out of play, and the
    classes that are not cleaned accept every pixel. Where there is none, a pixel refused by
    all classes stays where it is.
    """
    remaining = probabilities.copy()
    if carina is not None:
        remaining[carina] = -np.inf
    changed = True
    while changed:
        changed = False
        for label, over in cleanable.items():
            mask = classes == label
            covering = np.isin(classes, over) if over else None
            rows, columns = np.nonzero(mask & ~largest_component(mask, probabilities[label], covering))
            if not rows.size:
                continue
            remaining[label, rows, columns] = -np.inf
            candidates = remaining[:, rows, columns]
            movable = np.isfinite(candidates.max(axis=0))
            classes[rows[movable], columns[movable]] = candidates.argmax(axis=0)[movable]
            changed |= bool(movable.any())
