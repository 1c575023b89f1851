"""What every answer of the page needs: database, settings, templates."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from jinja2 import Environment
from starlette.requests import Request
from starlette.responses import HTMLResponse

from schema import findings as finding_names
from schema.database import Database
from schema.findings import Finding
from worker import __version__
from worker.errors import CarinaError
from worker.findings.flag_rules import RULES
from worker.monitor.drift_nights import look_at_drift
from worker.monitor.serve.access import Access
from worker.monitor.serve.film import age_words
from worker.monitor.serve.pictures import Pictures
from worker.monitor.serve.queue import may_retry, read_queue
from worker.monitor.serve.worklist import SORTS, STATES, rule_title, stations
from worker.monitor.status import duration
from worker.results.film_card import template_environment
from worker.settings import Settings

IDENTIFIERS = ("accession_number", "sop_instance_uid")
#: How long a list of stations, a look at the queue and a judgement of the nights serve others, too.
_STATIONS_SECONDS, _QUEUE_SECONDS, _MOVED_SECONDS = 300.0, 1.0, 900.0
#: So many times that long an old answer may stand in for a new one.
_BEHIND_AT_MOST = 4


class Remembered:
    """An answer that serves for some seconds, whoever asks.

    With ``behind`` nobody waits for a new one: the old one is given until it is there, unless it is much older still,
    as last evening's is in the morning.
    """

    def __init__(self, seconds: float, ask: Callable[[], Any], *, behind: bool = False) -> None:
        self._seconds, self._ask, self._behind = seconds, ask, behind
        self._lock = threading.Lock()
        self._answer: Any = None
        self._until = self._answered_at = float("-inf")

    def __call__(self) -> Any:
        """The answer, asked anew where the last one is too old."""
        now = time.monotonic()
        if now < self._until:
            return self._answer
        if self._behind and now < self._answered_at + _BEHIND_AT_MOST * self._seconds:
            # So that it is asked once, not by everybody who comes meanwhile; where it fails it stays as it was.
            self._until = now + self._seconds
            threading.Thread(target=self._renew, name="remembered", daemon=True).start()
            return self._answer
        with self._lock:
            if time.monotonic() >= self._until:
                self._renew()
            return self._answer

    def _renew(self) -> None:
        self._answer = self._ask()
        self._answered_at = time.monotonic()
        self._until = self._answered_at + self._seconds


@dataclass
class Page:
    """What every answer needs.

    ``announce`` is called with the number of films that are ready again after a retry. Raises CarinaError for a
    setting that cannot be meant.
    """

    settings: Settings
    database: Database
    access: Access
    announce: Callable[[int], object]
    identifiers: tuple[str, ...] = field(init=False)
    may_retry: bool = field(init=False)
    templates: Environment = field(init=False)
    pictures: Pictures = field(init=False)
    stations: Remembered = field(init=False)
    queue: Remembered = field(init=False)
    moved: Remembered = field(init=False)

    def __post_init__(self) -> None:
        self.identifiers = _identifiers(self.settings)
        if self.settings.serve_pictures not in ("yes", "no"):
            raise CarinaError(f"CARINA_SERVE_PICTURES must be yes or no, not {self.settings.serve_pictures!r}.")
        self.may_retry = may_retry(self.database)
        self.templates = _templates(signed_in=bool(self.access.token))
        self.pictures = Pictures(self.settings)
        self.stations = Remembered(_STATIONS_SECONDS, lambda: self.ask(stations), behind=True)
        self.moved = Remembered(_MOVED_SECONDS, lambda: self.ask(look_at_drift), behind=True)
        self.queue = Remembered(_QUEUE_SECONDS, lambda: self.ask(lambda it: read_queue(it, self.settings)))

    def ask(self, question: Callable[[Any], Any]) -> Any:
        """Ask the database in one read transaction."""
        with self.database.read() as connection:
            return question(connection)

    def html(self, request: Request, template: str, *, status: int = 200, **given: Any) -> HTMLResponse:
        """A page from a template."""
        form_value = self.access.form_value(request.state.session)
        page = self.templates.get_template(template)
        return HTMLResponse(
            page.render(path=request.url.path, form_value=form_value, may_retry=self.may_retry, **given), status
        )


def _templates(*, signed_in: bool) -> Environment:
    templates = template_environment("worker.monitor.serve", "worker.results")
    templates.globals |= {
        "version": __version__,
        "titles": {str(finding): finding_names.title(finding) for finding in Finding},
        "rules": {str(rule): rule_title(rule) for rule in RULES},
        "state_choices": tuple((state, state.replace("_", " ")) for state in map(str, STATES)),
        "sorts": SORTS,
        "pairs": _pairs,
        "duration": duration,
        "age_words": age_words,
        "signed_in": signed_in,
    }
    # The first to look in the morning shall not wait until they are compiled.
    for name in templates.list_templates(extensions=["jinja"]):
        templates.get_template(name)
    return templates


def _pairs(names: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """Choices whose title is their value."""
    return tuple((name, name) for name in names)


def _identifiers(settings: Settings) -> tuple[str, ...]:
    names = tuple(name.strip() for name in settings.serve_identifiers.split(",") if name.strip())
    for name in names:
        if name not in IDENTIFIERS:
            raise CarinaError(
                f"CARINA_SERVE_IDENTIFIERS has {name!r}; known are {' and '.join(IDENTIFIERS)}, separated by commas."
            )
    return names
