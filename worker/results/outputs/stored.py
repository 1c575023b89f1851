"""One film's published result as the database holds it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection, Row, and_, func, select

from schema.database import Database
from schema.regions import Region, RegionDefinition
from schema.tables import (
    JobState,
    arrival,
    bundle,
    failure_flag,
    finding_score,
    heatmap,
    identity,
    instance,
    instance_identity,
    job,
    region_measurement,
    segmentation,
)
from worker.errors import CarinaError, FilmError
from worker.film.prepared import Geometry
from worker.queue.outcomes import SourceReference
from worker.results.masks import decode_array, decode_mask
from worker.results.result import FindingScore, Flag, Heatmap, LabelMap


@dataclass(frozen=True)
class RegionMeasurement:
    """A region's numbers: shares and probabilities 0-1, ``area_mm2`` None where the spacing is not trusted."""

    region: str
    area_fraction: float
    area_mm2: float | None
    mean_probability: float | None


@dataclass(frozen=True)
class StoredResult:
    """Everything an output object is made of, apart from the film's own header.

    ``labels`` is uint8 on the network's grid with the bundle's own values, None for a bundle without a
    segmentation network; ``regions`` are the bundle's; ``sop_instance_uid`` is the film's original one.
    """

    job_id: int
    instance_key: str
    patient_key: str
    content_hash: str
    sop_instance_uid: str
    source: SourceReference
    bundle: str
    bundle_version: str
    bundle_sha256: str
    revision: int
    finished_at: datetime
    regions: tuple[RegionDefinition, ...]
    labels: LabelMap | None
    geometry: Geometry
    measurements: tuple[RegionMeasurement, ...]
    scores: tuple[FindingScore, ...]
    flags: tuple[Flag, ...]
    heatmap: Heatmap | None
    engine: dict[str, Any]

    @property
    def foreground(self) -> tuple[RegionDefinition, ...]:
        """The bundle's regions other than background, in the order of their values."""
        return tuple(region for region in self.regions if region.name != Region.BACKGROUND)

    def masks(self, labels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """0/1 masks (rows, columns, regions) of ``labels``, one for each of :attr:`foreground`."""
        return np.stack([labels == region.value for region in self.foreground], axis=-1).astype(np.uint8)


def load_result(database: Database, job_id: int) -> StoredResult:
    """The result of a job.

    Raises
    ------
    worker.errors.CarinaError
        The job has no published result.
    worker.errors.FilmError
        ``SOURCE_MISSING``: the database no longer knows where the film's file is.
    worker.results.masks.DamagedMaskError
        A stored map is damaged.
    """
    with database.read() as connection:
        row = connection.execute(_result_query(job_id)).first()
        if row is None:
            raise CarinaError(f"Job {job_id} has no published result. Look what became of it: carina failed")
        if row.path is None:
            raise FilmError("SOURCE_MISSING", "the place of its file was dropped from the database")
        return _stored(connection, row)


def _result_query(job_id: int) -> Any:
    file = func.coalesce(
        job.c.arrival_id,
        select(arrival.c.id).where(arrival.c.instance_id == job.c.instance_id, arrival.c.current).scalar_subquery(),
    )
    return (
        select(
            job.c.id.label("job_id"),
            job.c.revision,
            job.c.finished_at,
            instance.c.key,
            instance.c.patient_key,
            instance.c.content_hash,
            instance.c.row_spacing,
            instance.c.column_spacing,
            instance.c.spacing_source,
            instance_identity.c.sop_instance_uid,
            bundle.c.name,
            bundle.c.version,
            bundle.c.sha256,
            bundle.c.manifest,
            *(identity.c[name] for name in ("root", "path", "member", "size", "modified_ns")),
            *(segmentation.c[name] for name in ("mask", "height", "width", "film_rows", "film_columns")),
            *(segmentation.c[name] for name in ("flip_columns", "flip_rows", "engine")),
        )
        .join(instance, instance.c.id == job.c.instance_id)
        .join(instance_identity, instance_identity.c.instance_id == instance.c.id)
        .join(bundle, bundle.c.id == job.c.bundle_id)
        .outerjoin(identity, identity.c.arrival_id == file)
        .outerjoin(segmentation, segmentation.c.job_id == job.c.id)
        .where(and_(job.c.id == job_id, job.c.state == JobState.DONE.value, job.c.published))
    )


def _stored(connection: Connection, row: Row[Any]) -> StoredResult:
    scores = connection.execute(select(finding_score).where(finding_score.c.job_id == row.job_id)).all()
    flags = connection.execute(
        select(failure_flag).where(failure_flag.c.job_id == row.job_id).order_by(failure_flag.c.id)
    )
    measured = connection.execute(select(region_measurement).where(region_measurement.c.job_id == row.job_id))
    by_region = {item.region: item for item in measured}
    heat = connection.execute(select(heatmap).where(heatmap.c.job_id == row.job_id)).first()
    order = {entry["finding"]: place for place, entry in enumerate(row.manifest.get("findings", []))}
    regions = regions_of(row.manifest)
    return StoredResult(
        job_id=row.job_id,
        instance_key=row.key,
        patient_key=row.patient_key,
        content_hash=row.content_hash or "",
        sop_instance_uid=row.sop_instance_uid,
        source=SourceReference(row.root, row.path, row.member, row.size, row.modified_ns),
        bundle=row.name,
        bundle_version=row.version,
        bundle_sha256=row.sha256,
        revision=row.revision,
        finished_at=row.finished_at,
        regions=regions,
        labels=None if row.mask is None else decode_mask(row.mask, (row.height, row.width)),
        geometry=Geometry(
            row.film_rows or 0,
            row.film_columns or 0,
            bool(row.flip_columns),
            bool(row.flip_rows),
            row.row_spacing,
            row.column_spacing,
            row.spacing_source or "none",
        ),
        measurements=tuple(
            RegionMeasurement(item.region, item.area_fraction, item.area_mm2, item.mean_probability)
            for item in (by_region.get(region.name) for region in regions)
            if item is not None
        ),
        scores=tuple(
            FindingScore(item.finding, item.probability, item.spread, item.threshold, item.positive, item.members)
            for item in sorted(scores, key=lambda score: (order.get(score.finding, len(order)), score.finding))
        ),
        flags=tuple(
            Flag(item.rule, item.rule_version, item.source, item.region, item.value, item.threshold, item.detail)
            for item in flags
        ),
        heatmap=None
        if heat is None
        else Heatmap(tuple(heat.findings), decode_array(heat.maps, (len(heat.findings), heat.height, heat.width))),
        engine=row.engine or {},
    )


def regions_of(manifest: dict[str, Any]) -> tuple[RegionDefinition, ...]:
    """A bundle's regions from its manifest, in the order of their values."""
    return tuple(
        RegionDefinition(region["value"], region["name"], region["title"], tuple(region["colour"]))
        for region in manifest["regions"]
    )
