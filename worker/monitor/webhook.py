"""How does another system hear of an alert? One POST of JSON to ``CARINA_WEBHOOK_URL``, signed, no faster than agreed.

The rows are the queue: what was not taken is told again at the next occasion, so news may come twice and are never
lost. Who must tell them apart looks at ``id`` and ``state``.
"""

from __future__ import annotations

import hashlib
import hmac
import http.client
import json
import logging
import ssl
from collections.abc import Sequence
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

from sqlalchemy import Row, and_, func, or_, select, update

from schema.database import Database
from schema.tables import alert
from schema.types import database_now
from worker import __version__
from worker.errors import CarinaError
from worker.monitor.alert_rules import RULES
from worker.settings import Settings

log = logging.getLogger(__name__)

SIGNATURE = "X-Carina-Signature"
_TIMEOUT_SECONDS = 10.0
#: Alerts in one POST; the others follow.
_MOST = 100
#: What was over longer ago is no news any more.
_STALE = timedelta(days=1)


class WebhookError(CarinaError):
    """The receiver did not take the news; the message holds neither its address nor its words."""


def send_news(database: Database, settings: Settings) -> str:
    """Tell what is new, unless something was told less than ``CARINA_WEBHOOK_SECONDS`` ago; a line for the record."""
    if not settings.webhook_url:
        return "no webhook"
    with database.read() as connection:
        now = connection.execute(select(database_now())).scalar_one()
        last = connection.execute(select(func.max(alert.c.opening_sent_at), func.max(alert.c.closing_sent_at))).one()
        told = max((each for each in last if each is not None), default=None)
        news = list(connection.execute(_news(now - _STALE).limit(_MOST)))
    if not news:
        return "nothing to tell"
    if told is not None and now - told < timedelta(seconds=settings.webhook_seconds):
        return f"{len(news)} alerts wait to be told"
    try:
        post(settings.webhook_url, settings.webhook_secret, body_of(news))
    except WebhookError as error:
        log.warning("%s", error)
        return f"{len(news)} alerts not told: {error}"
    _note(database, news)
    return f"{len(news)} alerts told"


def _news(stale: Any) -> Any:
    columns = alert.c
    opening = and_(columns.opening_sent_at.is_(None), or_(columns.closed_at.is_(None), columns.closed_at > stale))
    closing = and_(columns.closing_sent_at.is_(None), columns.closed_at > stale)
    return select(alert).where(or_(opening, closing)).order_by(columns.id)


def _note(database: Database, news: Sequence[Row[Any]]) -> None:
    columns = alert.c
    ids = [row.id for row in news]
    over = [row.id for row in news if row.closed_at is not None]
    with database.write() as connection:
        connection.execute(
            update(alert)
            .where(columns.id.in_(ids), columns.opening_sent_at.is_(None))
            .values(opening_sent_at=database_now())
        )
        connection.execute(update(alert).where(columns.id.in_(over)).values(closing_sent_at=database_now()))


def body_of(news: Sequence[Row[Any]]) -> bytes:
    """Alerts as JSON: no film, no patient."""
    alerts = [
        {
            "id": row.id,
            "rule": row.rule,
            "subject": row.subject,
            "state": "closed" if row.closed_at is not None else "open",
            "opened_at": row.opened_at.isoformat(),
            "closed_at": None if row.closed_at is None else row.closed_at.isoformat(),
            "meaning": RULES[row.rule].meaning if row.rule in RULES else "",
            "detail": row.detail,
            "advice": RULES[row.rule].advice if row.rule in RULES else "",
            "value": row.value,
            "threshold": row.threshold,
        }
        for row in news
    ]
    return json.dumps({"source": "carina", "version": __version__, "alerts": alerts}).encode()


def post(url: str, secret: str, body: bytes) -> None:
    """POST ``body``; with a ``secret`` its HMAC-SHA256 goes along (:data:`SIGNATURE`). Redirects are not followed.

    Raises
    ------
    WebhookError
        The address is none, nobody answers, or the answer is not 2xx.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise WebhookError("CARINA_WEBHOOK_URL must begin with http:// or https:// and name a host.")
    headers = {"Content-Type": "application/json", "User-Agent": f"carina/{__version__}"}
    if secret:
        headers[SIGNATURE] = "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
    try:
        connection = _connect(parts.scheme, parts.hostname, parts.port)
    except ValueError:
        raise WebhookError("CARINA_WEBHOOK_URL names no port.") from None
    try:
        connection.request("POST", (parts.path or "/") + (f"?{parts.query}" if parts.query else ""), body, headers)
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        raise WebhookError(f"The webhook cannot be reached ({type(error).__name__}); it is tried again.") from None
    finally:
        connection.close()
    if not 200 <= status < 300:
        raise WebhookError(f"The webhook answered {status}; it is tried again.")


def _connect(scheme: str, host: str, port: int | None) -> http.client.HTTPConnection:
    if scheme == "https":
        return http.client.HTTPSConnection(host, port, timeout=_TIMEOUT_SECONDS, context=ssl.create_default_context())
    return http.client.HTTPConnection(host, port, timeout=_TIMEOUT_SECONDS)
