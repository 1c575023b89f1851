"""Alerts: a row for everything that needs a person, for as long as it does.

An alert is opened once, however often its rule is asked, and closed when the trouble has been gone for as long as its
rule wants. Nothing is deleted: the table is the history.
"""

from __future__ import annotations

import socket
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Row, insert, select, update
from sqlalchemy.exc import IntegrityError

from schema.database import Database
from schema.tables import alert, audit_event
from schema.types import database_now
from worker.errors import CarinaError
from worker.monitor.alert_rules import (
    DRIFT_RULES,
    LEDGER_RULES,
    RULES,
    Level,
    Reading,
    disk_readings,
    drift_readings,
    ledger_readings,
)
from worker.monitor.drift_nights import look_at_drift
from worker.monitor.webhook import send_news
from worker.settings import Settings


@dataclass(frozen=True)
class AlertReport:
    """What a look changed."""

    opened: int
    closed: int

    def __str__(self) -> str:
        return f"{self.opened} opened, {self.closed} closed"


def alert_duty(database: Database, settings: Settings) -> str:
    """Look at ledger, disk and labels, and tell the webhook what is new; returns a line for the record."""
    report = look_at_ledger(database, settings)
    return f"{report}; {send_news(database, settings)}"


def drift_duty(database: Database) -> str:
    """Look at the nights; returns a line for the record."""
    return str(look_at_nights(database))


def look_at_ledger(database: Database, settings: Settings, *, now: datetime | None = None) -> AlertReport:
    """Open and close the alerts about queue, failures, labelled films and the disks of machines."""
    with database.read() as connection:
        readings = ledger_readings(connection, settings)
        readings += disk_readings(connection, settings, socket.gethostname())
    return keep_alerts(database, readings, LEDGER_RULES, now=now)


def look_at_nights(database: Database, *, now: datetime | None = None) -> AlertReport:
    """Open and close the alerts about drift of the bundle in service."""
    with database.read() as connection:
        report = look_at_drift(connection, now=now)
    return keep_alerts(database, [] if report is None else drift_readings(report), DRIFT_RULES, now=now)


def keep_alerts(
    database: Database, readings: Iterable[Reading], complete: Collection[str], *, now: datetime | None = None
) -> AlertReport:
    """Bring the open alerts in line with ``readings``.

    Parameters
    ----------
    complete
        Rules of which all is told: a subject that is not among the readings is off.
    now
        The database's time if it is None.
    """
    told = {(reading.rule, reading.subject): reading for reading in readings}
    try:
        return _keep(database, told, complete, now)
    except IntegrityError:
        # Somebody else has just opened the same one.
        return _keep(database, told, complete, now)


def _keep(
    database: Database, told: dict[tuple[str, str], Reading], complete: Collection[str], now: datetime | None
) -> AlertReport:
    with database.write() as connection:
        moment = now or connection.execute(select(database_now())).scalar_one()
        standing = {(row.rule, row.subject): row for row in connection.execute(_OPEN)}
        closed = 0
        for key, row in standing.items():
            if key in told or row.rule in complete or _is_gone(row, moment):
                closed += _go_on(connection, row, told.get(key) or Reading(*key, Level.OFF), moment)
        fresh = [each for key, each in told.items() if each.level is Level.ON and key not in standing]
        for reading in fresh:
            values = {"opened_at": moment, "rule": reading.rule, "subject": reading.subject, **_seen(reading, moment)}
            connection.execute(insert(alert).values(**values))
    return AlertReport(len(fresh), closed)


def _is_gone(row: Row[Any], moment: datetime) -> bool:
    return row.rule in RULES and (moment - row.seen_at).total_seconds() > RULES[row.rule].gone_seconds


_OPEN = select(alert).where(alert.c.closed_at.is_(None))


def _go_on(connection: Connection, row: Row[Any], reading: Reading, moment: datetime) -> bool:
    """Bring an open alert in line; True if that closes it."""
    if reading.level is Level.ON:
        values = _seen(reading, moment)
    elif reading.level is Level.BETWEEN:
        values = {"seen_at": moment, "quiet_since": None}
    else:
        since = row.quiet_since or moment
        values = {"quiet_since": since}
        calm = RULES[row.rule].calm_seconds if row.rule in RULES else 0.0
        if moment - since >= timedelta(seconds=calm):
            values["closed_at"] = moment
    connection.execute(update(alert).where(alert.c.id == row.id).values(**values))
    return "closed_at" in values


def _seen(reading: Reading, moment: datetime) -> dict[str, Any]:
    return {
        "seen_at": moment,
        "quiet_since": None,
        "value": reading.value,
        "threshold": reading.threshold,
        "detail": reading.detail,
    }


def list_alerts(connection: Connection, *, closed: bool = False) -> list[Row[Any]]:
    """Open alerts, the newest first; with ``closed`` those of all times."""
    query = select(alert) if closed else _OPEN
    return list(connection.execute(query.order_by(alert.c.opened_at.desc(), alert.c.id.desc())))


def acknowledge(database: Database, alert_id: int, *, actor: str, accept: bool = False) -> None:
    """Note that somebody knows of an alert (``audit_event`` says who).

    Parameters
    ----------
    accept
        This is how things are from now on: the alert is closed, and what is usual is learned anew from today.

    Raises
    ------
    CarinaError
        There is no such alert, or it is not about drift and cannot be accepted.
    """
    with database.write() as connection:
        row = connection.execute(select(alert).where(alert.c.id == alert_id)).one_or_none()
        if row is None:
            raise CarinaError(f"There is no alert {alert_id}. Look: carina alerts --all")
        if accept and row.rule not in DRIFT_RULES:
            raise CarinaError(f"Only drift and shifts can be accepted as usual, not {row.rule}: it closes by itself.")
        moment = connection.execute(select(database_now())).scalar_one()
        values = {"acknowledged_at": row.acknowledged_at or moment}
        if accept:
            values |= {"accepted_at": moment}
            if row.closed_at is None:
                values |= {"quiet_since": moment, "closed_at": moment}
        connection.execute(update(alert).where(alert.c.id == alert_id).values(**values))
        action = "accept alert" if accept else "acknowledge alert"
        detail = {"alert": alert_id, "rule": row.rule}
        connection.execute(insert(audit_event).values(actor=actor, action=action, subject="alert", detail=detail))
