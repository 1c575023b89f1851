"""What each address of the page answers."""

from __future__ import annotations

import hmac
import json
import logging
from collections.abc import AsyncIterator, Mapping
from importlib import resources
from typing import Any

import anyio
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response, StreamingResponse

from worker.errors import CODES
from worker.monitor.alerts import list_alerts
from worker.monitor.drift import State
from worker.monitor.drift_charts import BASELINE_NIGHTS, LEAST_FILMS
from worker.monitor.drift_nights import DriftReport
from worker.monitor.serve.access import COOKIE, read_form
from worker.monitor.serve.context import Page
from worker.monitor.serve.drift import read_drift
from worker.monitor.serve.film import FilmPage, Shown, read_film
from worker.monitor.serve.performance import read_performance
from worker.monitor.serve.pictures import heat_png, picture_shape, regions_png, windowed
from worker.monitor.serve.queue import Queue, read_dead_letters, read_last_day
from worker.monitor.serve.worklist import FilterError, Filters, read_worklist
from worker.queue.ledger import retry
from worker.results.masks import DamagedMaskError

log = logging.getLogger(__name__)

#: How often a queue that is watched is read, and how long one watcher is served before it asks anew.
LIVE_SECONDS = 3.0
_WATCH_SECONDS = 600.0
_STATIC = {
    "base.css": ("worker.results", "templates", "text/css"),
    "page.css": ("worker.monitor.serve", "static", "text/css"),
    "page.js": ("worker.monitor.serve", "static", "text/javascript"),
    "icon.svg": ("worker.monitor.serve", "static", "image/svg+xml"),
}


def worklist(request: Request) -> Response:
    """The first screen: which films came, what is wrong with them."""
    page = _page(request)
    filters = Filters.parse(request.query_params)

    def read(connection: Any) -> Any:
        first = not filters.narrowed and not filters.after
        found = read_worklist(connection, filters, identifiers=page.identifiers)
        return (found, read_last_day(connection), list_alerts(connection)) if first else (found, None, [])

    found, last_day, alerts = page.ask(read)
    return page.html(
        request,
        "worklist.html.jinja",
        list=found,
        filters=filters,
        last_day=last_day,
        alerts=alerts,
        stations=page.stations(),
    )


def film(request: Request) -> Response:
    """One film."""
    page = _page(request)
    found = _film(request)
    shown = Shown.parse(request.query_params, request.query_params.getlist("region"))
    back = request.query_params.get("list", "")
    pictures = page.settings.serve_pictures == "yes"
    return page.html(
        request,
        "film.html.jinja",
        film=found,
        shown=shown,
        query=request.url.query,
        job=request.query_params.get("job", ""),
        back=back,
        pictures=pictures,
        gone=pictures and page.pictures.path(found.source) is None,
        shape=picture_shape(found.result.row.film_rows, found.result.row.film_columns) if found.result else (1, 1),
    )


def film_picture(request: Request) -> Response:
    """The film itself at a window."""
    page, found = _page(request), _film(request)
    if page.settings.serve_pictures != "yes":
        raise HTTPException(404, "This page shows no films: CARINA_SERVE_PICTURES is no.")
    picture = page.pictures.film(found.source)
    if picture is None:
        raise HTTPException(404, "The file is no longer where it was.")
    shown = Shown.parse(request.query_params, ())
    return Response(windowed(picture, shown.center, shown.width), media_type="image/jpeg")


def film_layer(request: Request) -> Response:
    """Regions or an activation map, transparent, to lie over the film."""
    found = _film(request)
    if found.result is None:
        raise HTTPException(404, "This film has no result.")
    result = found.result
    shown = Shown.parse(request.query_params, request.query_params.getlist("region"))
    if shown.heat:
        shape = picture_shape(result.row.film_rows, result.row.film_columns)
        layer = heat_png(result.heat, shown.heat, shape)
        if layer is None:
            raise HTTPException(404, "This result has no activation map of that finding.")
    else:
        names = [region.name for region in result.regions if shown.shows(region.name)]
        try:
            layer = regions_png(result.row, result.regions, names, opacity=shown.opacity, outlines=shown.outlines)
        except DamagedMaskError as error:
            log.error("job %d: %s", result.job, error)
            raise HTTPException(404, str(error)) from None
    return Response(layer, media_type="image/png")


def performance(request: Request) -> Response:
    """AUROC and Dice with intervals."""
    page = _page(request)
    found = page.ask(lambda connection: read_performance(connection, request.query_params))
    return page.html(request, "performance.html.jinja", found=found)


def drift(request: Request) -> Response:
    """What moves without labels."""
    page = _page(request)
    found = page.ask(lambda connection: read_drift(connection, request.query_params))
    moved: DriftReport | None = page.moved()
    states = [series.state for series in moved.series] if moved else []
    return page.html(
        request,
        "drift.html.jinja",
        found=found,
        moved=moved,
        signals=[series for series in moved.series if series.state is State.SIGNAL] if moved else [],
        learning=states.count(State.LEARNING),
        judged=len(states) - states.count(State.LEARNING),
        baseline_nights=BASELINE_NIGHTS,
        least_films=LEAST_FILMS,
    )


def queue(request: Request) -> Response:
    """What waits and who works."""
    page = _page(request)
    return page.html(request, "queue.html.jinja", queue=page.queue())


async def queue_live(request: Request) -> Response:
    """The queue as server-sent events, each the table anew."""
    page = _page(request)
    template = page.templates.get_template("queue_now.html.jinja")

    def now() -> str:
        found: Queue = page.queue()
        return template.render(queue=found, may_retry=page.may_retry)

    async def events() -> AsyncIterator[str]:
        end = anyio.current_time() + _WATCH_SECONDS
        while anyio.current_time() < end:
            yield f"data: {json.dumps(await run_in_threadpool(now))}\n\n"
            await anyio.sleep(LIVE_SECONDS)

    return StreamingResponse(events(), media_type="text/event-stream")


def failed(request: Request) -> Response:
    """Dead letters."""
    page = _page(request)
    code = request.query_params.get("code", "")
    after = request.query_params.get("after", "")
    if code and code not in CODES:
        raise FilterError(f"code={code} is not known.")
    if after and not after.isdecimal():
        raise FilterError("after= is not a place in this list: begin at its first page.")
    found = page.ask(lambda connection: read_dead_letters(connection, code=code, after=int(after) if after else None))
    retried = request.query_params.get("retried", "")
    return page.html(request, "failed.html.jinja", found=found, retried=int(retried) if retried.isdecimal() else None)


async def retry_failed(request: Request) -> Response:
    """Put films back into the queue: the one thing this page changes."""
    page = _page(request)
    form = await _checked_form(request)
    job, code = form.get("job", ""), form.get("code", "")
    chosen: Mapping[str, Any]
    if job.isdecimal() and not code:
        chosen = {"ids": [int(job)]}
    elif code in CODES and not job:
        chosen = {"codes": [code]}
    else:
        raise FilterError("Name a job or a code to retry.")
    if not page.may_retry:
        raise HTTPException(403, "The page's database role may not write. Run: carina retry")
    host = request.client.host if request.client else "unknown"
    count = await run_in_threadpool(lambda: retry(page.database, actor=f"page, from {host}", **chosen))
    await run_in_threadpool(page.announce, count)
    return RedirectResponse(f"/failed?retried={count}", 303)


async def sign_out(request: Request) -> Response:
    """Forget the browser."""
    await _checked_form(request)
    answer = RedirectResponse("/", 303)
    answer.delete_cookie(COOKIE)
    return answer


def static(request: Request) -> Response:
    """A file of this package."""
    name = request.path_params["name"]
    if name not in _STATIC:
        raise HTTPException(404, "There is no such file.")
    package, folder, kind = _STATIC[name]
    content = (resources.files(package) / folder / name).read_text("utf-8")
    return Response(content, media_type=kind, headers={"Cache-Control": "public, max-age=3600"})


def health(request: Request) -> Response:
    """Whether the page and its database answer; says nothing else."""
    _page(request).ask(lambda connection: connection.exec_driver_sql("SELECT 1").scalar())
    return PlainTextResponse("ok")


def _page(request: Request) -> Page:
    found: Page = request.app.state.page
    return found


def _film(request: Request) -> FilmPage:
    page, number = _page(request), request.path_params["number"]
    job = request.query_params.get("job", "")
    found: FilmPage | None = None
    # A larger number is no row's, and the database would refuse it.
    if number < 1 << 63:
        found = page.ask(
            lambda connection: read_film(
                connection, number, job_id=int(job) if job.isdecimal() else None, identifiers=page.identifiers
            )
        )
    if found is None:
        raise HTTPException(404, "There is no film of that number.")
    return found


async def _checked_form(request: Request) -> dict[str, str]:
    """The fields of a form that this page gave to this browser."""
    form = await read_form(request)
    wanted = _page(request).access.form_value(request.state.session)
    if not hmac.compare_digest(form.get("form_value", "").encode(), wanted.encode()):
        raise HTTPException(403, "The form is too old. Load the page again, then repeat it.")
    return form
