"""How well do a bundle's regions fit those that readers drew?

The Dice coefficient of each region on the film's own grid is computed once for each result and label map and kept
(``region_dice``). What is tracked is the mean over films, of a film with several readers the mean over these.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection, select

from schema.bulk import insert_rows
from schema.regions import REGION_BY_NAME, REGIONS, Region, parts_of
from schema.tables import dice_tracking, label_map, region_dice, segmentation
from worker.film.geometry import to_film_grid
from worker.metrics import region_overlaps
from worker.monitor.auc_figures import mean_dice
from worker.monitor.label_maps import current_maps, picture_of
from worker.monitor.labelled_films import JudgedBundle, films_of, first_labels, held_out, may_have_learned, results_of
from worker.monitor.labels import HEADLINE_SOURCES
from worker.monitor.tracking import Row, Tracker
from worker.monitor.windows import Window, ends, windows
from worker.results.export import exported_values, geometry_of
from worker.results.masks import DamagedMaskError, decode_mask

log = logging.getLogger(__name__)

FloatArray = npt.NDArray[np.float64]


def track_dice(tracker_of: Callable[..., Tracker], judged: JudgedBundle, last: datetime, history_days: int) -> None:
    """Keep a bundle's rows of ``dice_tracking``; ``tracker_of`` makes what keeps them.

    Raises
    ------
    worker.monitor.tracking.OutOfTimeError
        There is more to do.
    """
    regions = tuple(region.name for region in REGIONS[1:] if region.name in judged.regions)
    tracker = tracker_of(dice_tracking, bundle_id=judged.id)
    with tracker.database.read() as connection:
        maps = current_maps(connection, sources=HEADLINE_SOURCES)
        drawn: dict[int, list[int]] = defaultdict(list)
        for each in maps:
            drawn[each.instance_id].append(each.id)
        rows = results_of(connection, judged.id, drawn.keys())
        labelled, held = first_labels(connection, label_map), held_out(connection, rows)
    rows = [row for row in rows if not may_have_learned(row, judged, labelled, held)]
    if not regions:
        return
    dice = _dice(tracker, judged, rows, drawn, regions)
    films = films_of(rows)

    def compute(window: Window) -> list[Row]:
        found = mean_dice(dice[window.places], films.patients[window.places], replicates=tracker.replicates)
        return [{"region": region, **row} for region, row in zip(regions, found, strict=True)]

    def content(window: Window) -> list[Any]:
        places = window.places
        return [np.array(regions), films.ids[places], films.patients[places], dice[places]]

    found = windows(films, judged.promoted_at, ends(films, last, history_days), last) if rows else ()
    tracker.keep(found, content, compute)


def _dice(
    tracker: Tracker, judged: JudgedBundle, rows: Sequence[Any], drawn: dict[int, list[int]], regions: Sequence[str]
) -> FloatArray:
    """(films, regions): of several readers the mean; NaN where none has the region and the result neither."""
    columns = {name: column for column, name in enumerate(regions)}
    found = np.full((len(rows), len(regions)), np.nan)
    for place, row in enumerate(rows):
        with tracker.database.read() as connection:
            known = _known(connection, row.job_id, drawn[row.id])
            missing = [number for number in drawn[row.id] if number not in known]
            new = {number: _compare(connection, row.job_id, number, judged) for number in missing}
        if new:
            with tracker.database.write() as connection:
                for number, values in new.items():
                    insert_rows(connection, region_dice, _rows(row.job_id, number, values))
            tracker.effort.spend()
        told = np.full((len(drawn[row.id]), len(regions)), np.nan)
        for reader, number in enumerate(drawn[row.id]):
            for name, dice in (known.get(number) or new.get(number) or {}).items():
                if name in columns and dice is not None:
                    told[reader, columns[name]] = dice
        known_to = ~np.isnan(told)
        total = np.where(known_to, told, 0.0).sum(axis=0)
        np.divide(total, known_to.sum(axis=0), out=found[place], where=known_to.any(axis=0))
    return found


def _known(connection: Connection, job_id: int, maps: Sequence[int]) -> dict[int, dict[str, float | None]]:
    columns = region_dice.c
    found: dict[int, dict[str, float | None]] = defaultdict(dict)
    query = select(region_dice).where(columns.job_id == job_id, columns.label_map_id.in_(maps))
    for row in connection.execute(query):
        found[row.label_map_id][row.region] = row.dice
    return dict(found)


def _rows(job_id: int, map_id: int, values: dict[str, float | None]) -> list[Row]:
    return [{"job_id": job_id, "label_map_id": map_id, "region": name, "dice": dice} for name, dice in values.items()]


def _compare(connection: Connection, job_id: int, map_id: int, judged: JudgedBundle) -> dict[str, float | None]:
    """Region → Dice coefficient; None where neither has it. Nothing where a map is damaged or of another size."""
    row = connection.execute(select(segmentation).where(segmentation.c.job_id == job_id)).one_or_none()
    if row is None:
        return {}
    try:
        labels, truth = decode_mask(row.mask, (row.height, row.width)), picture_of(connection, map_id)
    except DamagedMaskError as error:
        log.error("job %d, label map %d: %s", job_id, map_id, error)
        return {}
    ours = to_film_grid(exported_values(judged.regions)[labels], geometry_of(row))
    if ours.shape != truth.shape:
        log.error("job %d and label map %d differ in size: record the map again.", job_id, map_id)
        return {}
    known = [region for region in REGIONS if region.name != Region.BACKGROUND and region.name in judged.regions]
    # What the bundle does not draw is nobody's fault: there it counts as background on both. Where it draws two
    # regions as one, so does the truth.
    drawn = np.zeros(256, np.uint8)
    for region in known:
        for part in (region.name, *parts_of(region.name)):
            drawn[REGION_BY_NAME[part].value] = region.value
    overlaps = region_overlaps(drawn[truth], drawn[ours], list(REGIONS))
    return {
        region.name: None if np.isnan(overlaps[region.name].dice) else overlaps[region.name].dice for region in known
    }
