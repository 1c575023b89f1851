"""The page's addresses, and who stands before them."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Callable

from sqlalchemy.exc import DBAPIError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from schema.database import Database
from worker.monitor.serve import answers
from worker.monitor.serve.access import Access, Guard
from worker.monitor.serve.context import Page
from worker.monitor.serve.worklist import FilterError
from worker.settings import Settings

log = logging.getLogger(__name__)

ROUTES = (
    Route("/", answers.worklist),
    Route("/film/{number:int}", answers.film),
    Route("/film/{number:int}/film.jpg", answers.film_picture),
    Route("/film/{number:int}/layer.png", answers.film_layer),
    Route("/performance", answers.performance),
    Route("/drift", answers.drift),
    Route("/queue", answers.queue),
    Route("/queue/live", answers.queue_live),
    Route("/failed", answers.failed),
    Route("/failed/retry", answers.retry_failed, methods=["POST"]),
    Route("/sign-out", answers.sign_out, methods=["POST"]),
    Route("/static/{name}", answers.static),
    Route("/health", answers.health),
)


def make_app(settings: Settings, database: Database, access: Access, announce: Callable[[int], object]) -> Starlette:
    """The application; ``announce`` is called with the number of films that a retry made ready.

    Raises
    ------
    worker.errors.CarinaError
        A setting has a value that cannot be meant.
    """
    page = Page(settings, database, access, announce)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        # Nobody waits for what reads every film.
        await run_in_threadpool(page.stations)
        yield
        page.pictures.close()

    sign_in = page.templates.get_template("sign_in.html.jinja").render()
    app = Starlette(
        routes=ROUTES,
        middleware=[Middleware(Guard, access=access, sign_in_page=sign_in)],
        exception_handlers={HTTPException: _http_error, FilterError: _filter_error, DBAPIError: _database_error},
        lifespan=lifespan,
    )
    app.state.page = page
    return app


def _say(request: Request, status: int, words: str) -> Response:
    page: Page = request.app.state.page
    return page.html(request, "error.html.jinja", status=status, words=words)


def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    words = error.detail if error.status_code != 404 or error.detail != "Not Found" else "There is no such page."
    return _say(request, error.status_code, words)


def _filter_error(request: Request, error: Exception) -> Response:
    return _say(request, 400, str(error))


def _database_error(request: Request, error: Exception) -> Response:
    # Neither the log nor the page may quote what was asked: it may name films.
    log.error("The database did not answer %s (%s).", request.url.path, type(error).__name__)
    return _say(request, 503, "The database does not answer. Run: carina doctor")
