"""What is known of each film as one document: the source of the JSON lines and of the Parquet tables.

Shares and probabilities are 0-1, areas mm² or pixels of the network's grid, centroids shares of the film.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import Table, select

from schema.codes import finding_code, region_code
from schema.database import Database
from schema.tables import failure_flag, finding_score, region_measurement
from worker.findings import flags as flag_rules
from worker.results.files import whole_file, writing_to
from worker.results.outputs.objects import Naming
from worker.results.research.films import count_films, pages
from worker.results.result import Flag

JSON_NAME = "films.jsonl"

Document = dict[str, Any]
Progress = Callable[[int, int], None]

#: Column → kind of value, of the film itself; ``identity`` and ``characteristics`` only where they are asked for.
FILM_COLUMNS: dict[str, str] = {
    "film": "text", "patient": "text", "study": "text", "series": "text", "held_out": "truth", "modality": "text",
    "body_part": "text", "view_position": "text", "film_rows": "whole", "film_columns": "whole",
    "row_spacing": "number", "column_spacing": "number", "spacing_source": "text", "bundle": "text",
    "engine": "text", "flagged": "truth", "repaired_pixels": "whole", "carina_threshold": "number",
}  # fmt: skip
CHARACTERISTICS_COLUMNS: dict[str, str] = {"sex": "text", "age_days": "whole"}
IDENTITY_COLUMNS: dict[str, str] = {
    "sop_instance_uid": "text", "study_instance_uid": "text", "series_instance_uid": "text", "patient_id": "text",
    "issuer_of_patient_id": "text", "accession_number": "text", "study_date": "text", "station": "text",
    "finished_at": "text",
}  # fmt: skip
#: List in a document → columns of its entries.
LISTS: dict[str, dict[str, str]] = {
    "findings": {
        "finding": "text", "code": "text", "scheme": "text", "probability": "number", "spread": "number",
        "threshold": "number", "positive": "truth",
    },
    "regions": {
        "region": "text", "code": "text", "scheme": "text", "laterality": "text", "area_pixels": "whole",
        "area_fraction": "number", "area_mm2": "number", "components": "whole", "centroid_row": "number",
        "centroid_column": "number", "mean_probability": "number", "repaired_pixels": "whole",
    },
    "flags": {
        "rule": "text", "rule_version": "whole", "source": "text", "region": "text", "value": "number",
        "threshold": "number", "detail": "text", "sentence": "text",
    },
}  # fmt: skip


def film_columns(naming: Naming) -> dict[str, str]:
    """The columns of a film as it is named."""
    columns = dict(FILM_COLUMNS)
    if naming.identified or naming.age_and_sex:
        columns |= CHARACTERISTICS_COLUMNS
    return columns | (IDENTITY_COLUMNS if naming.identified else {})


def documents(database: Database, submission_id: int | None, naming: Naming) -> Iterator[list[Document]]:
    """Documents of films with a published result, page by page."""
    wanted = film_columns(naming)
    for page in pages(database, submission_id):
        jobs = [row.job_id for row in page]
        entries = {
            "findings": _entries(database, finding_score, jobs, _finding),
            "regions": _entries(database, region_measurement, jobs, _region),
            "flags": _entries(database, failure_flag, jobs, _flag),
        }
        yield [
            {**_film(row, wanted), **{name: found.get(row.job_id, []) for name, found in entries.items()}}
            for row in page
        ]


def export_json(
    database: Database,
    out: Path,
    naming: Naming,
    *,
    submission_id: int | None = None,
    progress: Progress | None = None,
) -> int:
    """Write ``films.jsonl``, one document per line, and return how many.

    Raises
    ------
    worker.errors.CarinaError
        The folder cannot be written.
    """
    total, written = count_films(database, submission_id), 0
    with writing_to(out, "The export"), whole_file(out / JSON_NAME) as stream:
        for page in documents(database, submission_id, naming):
            for document in page:
                stream.write(json.dumps(document, ensure_ascii=False, allow_nan=False) + "\n")
            written += len(page)
            if progress:
                progress(written, total)
    return written


def _film(row: Any, wanted: dict[str, str]) -> Document:
    engine = row.engine or {}
    names = {"film": row.key, "patient": row.patient_key, "study": row.study_key, "series": row.series_key}
    made = {
        **names,
        "engine": " ".join(str(engine[part]) for part in ("backend", "backend_version", "precision") if part in engine),
        "flagged": bool(row.flagged),
        "finished_at": row.finished_at.isoformat(),
        "film_rows": row.mask_rows if row.mask_rows is not None else row.film_rows,
        "film_columns": row.mask_columns if row.mask_columns is not None else row.film_columns,
    }
    return {name: made[name] if name in made else getattr(row, name) for name in wanted}


def _entries(
    database: Database, table: Table, jobs: Sequence[int], entry: Callable[[Any], Document]
) -> dict[int, list[Document]]:
    found: dict[int, list[Document]] = defaultdict(list)
    query = select(table).where(table.c.job_id.in_(jobs)).order_by(*table.primary_key)
    with database.read() as connection:
        for row in connection.execute(query):
            found[row.job_id].append(entry(row))
    return found


def _columns(row: Any, names: str, **made: Any) -> Document:
    return {name: made[name] if name in made else getattr(row, name) for name in LISTS[names]}


def _finding(row: Any) -> Document:
    code = finding_code(row.finding)
    return _columns(row, "findings", code=code.value, scheme=code.scheme)


def _region(row: Any) -> Document:
    structure, laterality = region_code(row.region)
    side = laterality.meaning if laterality else None
    return _columns(row, "regions", code=structure.value, scheme=structure.scheme, laterality=side)


def _flag(row: Any) -> Document:
    flag = Flag(row.rule, row.rule_version, row.source, row.region, row.value, row.threshold, row.detail)
    return _columns(row, "flags", sentence=flag_rules.describe(flag))
