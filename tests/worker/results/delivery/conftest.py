from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest
from delivery_rows import destination, set_up

from schema.database import Database
from worker.results.delivery.destinations import mirror
from worker.results.delivery.outbox import Outbox


@pytest.fixture
def make_outbox(database: Database) -> Callable[..., Outbox]:
    """An outbox of a destination that was set up a day ago."""

    def make(backoff_seconds: float = 10.0, lease_seconds: float = 60.0, **changes: object) -> Outbox:
        one = destination(**changes)
        known = mirror(database, {one.name: one}, actor="test")
        set_up(database, known[one.name], timedelta(days=1))
        return Outbox(database, known[one.name], one, backoff_seconds=backoff_seconds, lease_seconds=lease_seconds)

    return make
