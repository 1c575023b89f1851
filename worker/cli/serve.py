"""``carina serve``: the page people keep open in the morning."""

from __future__ import annotations

import click

from worker.settings import load_settings


@click.command()
def serve() -> None:
    """Show worklist, films, performance, drift and queue in a browser, on this machine only by default.

    Prints the address to open. Who may see it and what it shows: CARINA_SERVE_* in
    docs/configuration.md. Needs pip install 'carina-cxr[serve]'.

    Example: carina serve
    """
    from worker.errors import CarinaError
    from worker.queue.tickets import announcing
    from worker.service import open_database

    try:
        from worker.monitor.serve import server
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("starlette", "uvicorn", "anyio"):
            raise
        raise CarinaError(
            "The page needs packages that are not installed. Run: pip install 'carina-cxr[serve]'"
        ) from None

    settings = load_settings()
    with open_database(settings) as database, announcing(settings, database) as announce:
        server.serve(settings, database, announce=announce, say=click.echo)
