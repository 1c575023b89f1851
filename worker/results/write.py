"""Write the results of a batch: one statement per table, whatever the number of films.

The state of the jobs is the ledger's; it calls this inside the transaction that ends them,
so that a film is ``done`` exactly when its result is there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Table

from schema import tables
from schema.bulk import insert_rows
from worker.film.geometry import RESAMPLER_VERSION
from worker.findings.flag_rules import is_notice
from worker.results.masks import MASK_ENCODING, encode_array, encode_mask
from worker.results.result import FilmResult, FindingScore, Flag, Heatmap, Measurement

Row = dict[str, Any]


def write_results(connection: Connection, rows: Sequence[tuple[int, FilmResult]]) -> None:
    """Insert the results of jobs that are done; ineligible films have none.

    Parameters
    ----------
    connection
        A write transaction.
    rows
        Job id and result. A job must not have a result yet.

    Raises
    ------
    sqlalchemy.exc.IntegrityError
        The database refused a row; nothing of the batch may then be committed.
    """
    done = [(job_id, result) for job_id, result in rows if result.ineligible_code is None]
    bulk: tuple[tuple[Table, list[Row]], ...] = (
        (tables.segmentation, [_segmentation(job_id, result) for job_id, result in done if result.segmentation]),
        (tables.region_measurement, [_measurement(job_id, item) for job_id, r in done for item in r.measurements]),
        (tables.failure_flag, [_flag(job_id, item) for job_id, r in done for item in r.flags]),
        (tables.finding_score, [_score(job_id, item) for job_id, r in done for item in r.scores]),
        (tables.heatmap, [_heatmap(job_id, result.heatmap) for job_id, result in done if result.heatmap]),
    )
    for table, values in bulk:
        insert_rows(connection, table, values)


def _segmentation(job_id: int, result: FilmResult) -> Row:
    segmentation, geometry = result.segmentation, result.geometry
    assert segmentation is not None
    height, width = segmentation.cleaned.shape
    untouched = segmentation.repaired_pixels == 0 and (segmentation.raw == segmentation.cleaned).all()
    return {
        "job_id": job_id,
        "height": height,
        "width": width,
        "encoding": MASK_ENCODING,
        "mask": encode_mask(segmentation.cleaned),
        # Kept only where clean-up changed something: absent means equal.
        "raw_mask": None if untouched else encode_mask(segmentation.raw),
        "resampler_version": RESAMPLER_VERSION,
        "film_rows": geometry.film_rows,
        "film_columns": geometry.film_columns,
        "flip_columns": geometry.flip_columns,
        "flip_rows": geometry.flip_rows,
        "carina_threshold": _float(segmentation.carina_threshold),
        "repaired_pixels": int(segmentation.repaired_pixels),
        "voi_policy": result.facts.voi_policy,
        "grey_mean": _float(result.facts.grey_mean),
        "grey_spread": _float(result.facts.grey_spread),
        "engine": result.engine,
        "seconds": result.seconds,
    }


def _measurement(job_id: int, item: Measurement) -> Row:
    top, left, bottom, right = item.bounding_box or (None, None, None, None)
    return {
        "job_id": job_id,
        "region": item.region,
        "area_pixels": int(item.area_pixels),
        "area_fraction": float(item.area_fraction),
        "area_mm2": _float(item.area_mm2),
        "components": int(item.components),
        "centroid_row": _float(item.centroid_row),
        "centroid_column": _float(item.centroid_column),
        "box_top": _int(top),
        "box_left": _int(left),
        "box_bottom": _int(bottom),
        "box_right": _int(right),
        "mean_probability": _float(item.mean_probability),
        "repaired_pixels": int(item.repaired_pixels),
    }


def _flag(job_id: int, item: Flag) -> Row:
    return {
        "job_id": job_id,
        "rule": item.rule,
        "rule_version": item.rule_version,
        "source": item.source,
        "region": item.region,
        "value": _float(item.value),
        "threshold": _float(item.threshold),
        "detail": item.detail,
        "notice": is_notice(item.rule),
    }


def _score(job_id: int, item: FindingScore) -> Row:
    return {
        "job_id": job_id,
        "finding": item.finding,
        "probability": float(item.probability),
        "spread": float(item.spread),
        "threshold": float(item.threshold),
        "positive": bool(item.positive),
        "members": {name: round(float(value), 6) for name, value in item.members.items()},
    }


def _heatmap(job_id: int, heatmap: Heatmap) -> Row:
    _, height, width = heatmap.maps.shape
    return {
        "job_id": job_id,
        "findings": list(heatmap.findings),
        "height": height,
        "width": width,
        "encoding": MASK_ENCODING,
        "maps": encode_array(heatmap.maps),
    }


def _float(value: float | None) -> float | None:
    # NumPy's own numbers would reach SQLite as bytes; what is no number is stored as none.
    return None if value is None or math.isnan(value) else float(value)


def _int(value: int | None) -> int | None:
    return None if value is None else int(value)
