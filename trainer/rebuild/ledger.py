"""The rows of ``rebuild``: begun, gone on with, ended.

Whoever writes one has the trainer's place (:mod:`trainer.rebuild.place`); a process that lost it writes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, exists, insert, select, update

from schema.database import Database
from schema.tables import RebuildState, bundle, rebuild
from schema.tables import worker as worker_table
from schema.types import database_now
from trainer.errors import RunError
from trainer.rebuild.place import Place
from trainer.rebuild.request import Request
from worker.monitor.labels import latest_label
from worker.queue.patience import Patience

_LISTED = 20


@dataclass(frozen=True)
class Rebuild:
    """A row of ``rebuild``; ``champion`` and ``bundle`` are ``name:version`` or ``""``."""

    id: int
    state: RebuildState
    stage: str
    starts: int
    started_at: datetime
    finished_at: datetime | None
    recipe: str
    request: Mapping[str, Any]
    folder: Path
    last_label_id: int
    champion: str
    bundle: str
    outcome: str
    results: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """As plain values, without request and results."""
        return {
            "rebuild": self.id,
            "state": str(self.state),
            "stage": self.stage,
            "recipe": self.recipe,
            "started_at": self.started_at.isoformat(),
            "finished_at": self.finished_at.isoformat() if self.finished_at else None,
            "folder": str(self.folder),
            "champion": self.champion,
            "bundle": self.bundle,
            "outcome": self.outcome,
        }


def list_rebuilds(database: Database, limit: int = _LISTED) -> list[Rebuild]:
    """The rebuilds begun last, the newest first."""
    with database.read() as connection:
        return _newest(connection, limit)


def last_finished(database: Database, recipe: str) -> Rebuild | None:
    """The newest rebuild of a recipe that came to its end."""
    return next(
        (
            each
            for each in list_rebuilds(database, limit=10 * _LISTED)
            if each.recipe == recipe and each.state is RebuildState.FINISHED
        ),
        None,
    )


def unfinished(database: Database, request: Request) -> Rebuild | None:
    """The rebuild that is under way if it is this request's."""
    return next(
        (
            each
            for each in list_rebuilds(database)
            if each.state is RebuildState.RUNNING and each.request == request.to_json()
        ),
        None,
    )


class RebuildLedger:
    """Writes rebuild rows as the bearer of the trainer's place."""

    def __init__(self, database: Database, place: Place) -> None:
        self._database = database
        self._worker = place.worker
        self._patience = Patience()

    def open(
        self, request: Request, first_stage: str, folder: Callable[[int], Path], *, champion_id: int, fresh: bool
    ) -> Rebuild:
        """Go on with what this request began and did not finish; else, or if ``fresh``, begin anew.

        Whatever else was under way is given up: its process is dead, for this one has the trainer's place.

        Parameters
        ----------
        folder
            Where rebuild number so and so keeps its files.
        champion_id
            The bundle in service: what a new rebuild's candidate will be compared with.
        """
        with self._database.write() as connection:
            before = [each for each in _newest(connection, _LISTED) if each.request == request.to_json()]
            found = before[0] if before and before[0].state is not RebuildState.FINISHED and not fresh else None
            self._give_up_others(connection, found.id if found else None)
            if found is None:
                number = self._begin(connection, request, first_stage, champion_id)
                values: dict[str, Any] = {"folder": str(folder(number))}
            else:
                number = found.id
                dead = found.state is RebuildState.RUNNING
                values = {
                    "state": RebuildState.RUNNING.value,
                    "finished_at": None,
                    "outcome": "",
                    "worker_id": self._worker.id,
                    "starts": found.starts + 1 if dead else 1,
                }
                if not dead and found.stage == first_stage:
                    values |= self._known(connection, request, champion_id)
            connection.execute(update(rebuild).where(rebuild.c.id == number).values(**values))
            return next(each for each in _newest(connection, None) if each.id == number)

    def advance(self, row: Rebuild, stage: str, results: Mapping[str, Any]) -> Rebuild:
        """Note that everything before ``stage`` is done; ``results`` are added to those known."""
        known = {**row.results, **results}
        self._write(row, {"stage": stage, "starts": 1, "results": known})
        return replace(row, stage=stage, starts=1, results=known)

    def finish(self, row: Rebuild, bundle_id: int, outcome: str, results: Mapping[str, Any]) -> None:
        """Note what came of it."""
        self._end(row, RebuildState.FINISHED, outcome, bundle_id=bundle_id, results={**row.results, **results})

    def fail(self, row: Rebuild, why: str) -> None:
        """Note that it cannot go on by itself."""
        self._end(row, RebuildState.FAILED, why)

    def _begin(self, connection: Connection, request: Request, stage: str, champion_id: int) -> int:
        added = connection.execute(
            insert(rebuild).values(
                stage=stage,
                worker_id=self._worker.id,
                recipe=request.recipe.name,
                request=request.to_json(),
                folder="",
                results={},
                **self._known(connection, request, champion_id),
            )
        )
        assert added.inserted_primary_key is not None
        return int(added.inserted_primary_key[0])

    @staticmethod
    def _known(connection: Connection, request: Request, champion_id: int) -> dict[str, Any]:
        """What a rebuild goes by from its first stage on; taken anew where that stage failed and was mended."""
        labels = latest_label(connection) if request.from_database else 0
        return {"champion_id": champion_id, "last_label_id": labels}

    def _give_up_others(self, connection: Connection, kept: int | None) -> None:
        others = update(rebuild).where(rebuild.c.state == RebuildState.RUNNING.value)
        if kept is not None:
            others = others.where(rebuild.c.id != kept)
        why = "Its process died and another rebuild was asked for. The command that began it goes on with it."
        connection.execute(others.values(state=RebuildState.FAILED.value, finished_at=database_now(), outcome=why))

    def _end(self, row: Rebuild, state: RebuildState, outcome: str, **values: Any) -> None:
        self._write(row, {"state": state.value, "finished_at": database_now(), "outcome": outcome, **values})

    def _write(self, row: Rebuild, values: Mapping[str, Any]) -> None:
        ours = exists().where(worker_table.c.id == self._worker.id, worker_table.c.boot_id == self._worker.boot_id)
        statement = update(rebuild).where(rebuild.c.id == row.id, rebuild.c.worker_id == self._worker.id, ours)

        def write() -> int:
            with self._database.write() as connection:
                return connection.execute(statement.values(**values)).rowcount

        if not self._patience.until_done(write):
            raise RunError("Another process has taken this rebuild over: this one ends.")


def _newest(connection: Connection, limit: int | None) -> list[Rebuild]:
    champion, made = bundle.alias("champion"), bundle.alias("made")
    rows = connection.execute(
        select(
            rebuild,
            (champion.c.name + ":" + champion.c.version).label("champion"),
            (made.c.name + ":" + made.c.version).label("bundle"),
        )
        .outerjoin(champion, champion.c.id == rebuild.c.champion_id)
        .outerjoin(made, made.c.id == rebuild.c.bundle_id)
        .order_by(rebuild.c.id.desc())
        .limit(limit)
    )
    return [
        Rebuild(
            id=row.id,
            state=RebuildState(row.state),
            stage=row.stage,
            starts=row.starts,
            started_at=row.started_at,
            finished_at=row.finished_at,
            recipe=row.recipe,
            request=row.request,
            folder=Path(row.folder),
            last_label_id=row.last_label_id,
            champion=row.champion or "",
            bundle=row.bundle or "",
            outcome=row.outcome,
            results=row.results,
        )
        for row in rows
    ]
