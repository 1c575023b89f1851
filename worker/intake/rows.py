"""A header as rows of the database: facts and pseudonyms here, identity there."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Table

from schema.keys import is_held_out, patient_key, uid_key
from schema.tables import instance, instance_identity
from schema.text import storable
from worker.film.reader import FilmHeader

#: (column, attribute of the header, length of the column).
_Columns = tuple[tuple[str, str, int], ...]


def _columns(table: Table, names: Iterable[tuple[str, str]]) -> _Columns:
    lengths = {column.name: getattr(column.type, "length", 0) for column in table.columns}
    return tuple((column, attribute, lengths[column]) for column, attribute in names)


_FACTS = _columns(
    instance,
    (
        ("sop_class_uid", "sop_class_uid"),
        ("transfer_syntax_uid", "transfer_syntax_uid"),
        ("modality", "modality"),
        ("body_part", "body_part"),
        ("view_position", "view_position"),
        ("station", "station_name"),
        ("manufacturer", "manufacturer"),
        ("photometric_interpretation", "photometric_interpretation"),
        ("sex", "sex"),
    ),
)
_IDENTIFIERS = _columns(
    instance_identity,
    (
        ("sop_instance_uid", "sop_instance_uid"),
        ("study_instance_uid", "study_instance_uid"),
        ("series_instance_uid", "series_instance_uid"),
        ("patient_id", "patient_id"),
        ("issuer_of_patient_id", "issuer_of_patient_id"),
        ("accession_number", "accession_number"),
    ),
)


def _fitting(columns: _Columns, header: FilmHeader) -> dict[str, str]:
    return {column: storable(getattr(header, attribute), length) for column, attribute, length in columns}


def instance_row(site_key: bytes, header: FilmHeader, key: str, instance_id: int) -> dict[str, Any]:
    """The row of ``instance``: pseudonyms and facts, nothing that names anybody."""
    study = header.study_instance_uid or header.sop_instance_uid
    patient = patient_key(site_key, header.issuer_of_patient_id, header.patient_id, otherwise=study)
    return {
        "id": instance_id,
        "key": key,
        "patient_key": patient,
        "study_key": uid_key(site_key, header.study_instance_uid),
        "series_key": uid_key(site_key, header.series_instance_uid),
        "held_out": is_held_out(patient),
        "age_days": header.age_days,
        "film_rows": header.rows or None,
        "film_columns": header.columns or None,
        **_fitting(_FACTS, header),
    }


def identity_row(header: FilmHeader, instance_id: int) -> dict[str, Any]:
    """The row of ``instance_identity``: what the film and its patient are called outside."""
    return {
        "instance_id": instance_id,
        "study_date": header.study_date.isoformat() if header.study_date else "",
        **_fitting(_IDENTIFIERS, header),
    }
