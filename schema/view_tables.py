"""The views that queries read, as SQLAlchemy sees them: see ``schema/views`` for what they mean."""

from __future__ import annotations

from sqlalchemy import Boolean, Column, Integer, MetaData, String, Table, Text

from schema.types import Id, UtcDateTime

_views = MetaData()

#: One row per file that came.
film_state = Table(
    "film_state",
    _views,
    Column("arrival_id", Id),
    Column("submission_id", Id),
    Column("instance_id", Id),
    Column("arrival_state", String),
    Column("job_id", Id),
    Column("state", String),
    Column("code", String),
    Column("detail", Text),
    Column("stage", String),
    Column("attempts", Integer),
    Column("bundle_id", Id),
    Column("bundle", String),
    Column("flagged", Integer),
    Column("finished_at", UtcDateTime),
)

#: One row per film with a result.
published_result = Table(
    "published_result",
    _views,
    Column("job_id", Id),
    Column("instance_id", Id),
    Column("arrival_id", Id),
    Column("instance_key", String),
    Column("bundle_id", Id),
    Column("bundle", String),
    Column("held_out", Boolean),
    Column("flagged", Integer),
    Column("finished_at", UtcDateTime),
)
