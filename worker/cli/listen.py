"""``carina listen``: take films over DICOM's own network protocol."""

from __future__ import annotations

import logging
import sys
import threading
from dataclasses import replace

import click

from worker.settings import load_settings


@click.command()
@click.option(
    "--processes", type=click.IntRange(min=1), help="Processes that share the port (CARINA_LISTEN_PROCESSES)."
)
@click.option("--with-parent", is_flag=True, hidden=True, help="Be one of several, and end when their starter does.")
def listen(processes: int | None, with_parent: bool) -> None:
    """Receive films by C-STORE, keep them in the spool and register them; answers C-ECHO.

    A film is acknowledged once it is on the disk and in the ledger. Where to listen and whom to
    admit: CARINA_LISTEN_* in docs/configuration.md. Needs pip install 'carina-cxr[pacs]'.

    Example: carina listen --processes 2
    """
    from worker.errors import CarinaError
    from worker.queue.solo import die_with_parent
    from worker.queue.tickets import announcing
    from worker.service import open_database, stop_on_signals

    try:
        from worker.intake.listener import service
    except ModuleNotFoundError as error:
        if error.name != "pynetdicom":
            raise
        raise CarinaError(
            "The listener needs packages that are not installed. Run: pip install 'carina-cxr[pacs]'"
        ) from None

    settings = load_settings()
    if processes is not None:
        settings = replace(settings, listen_processes=processes)
    if with_parent:
        die_with_parent()
    verbose = ["--verbose"] if logging.getLogger().isEnabledFor(logging.INFO) else []
    stop = threading.Event()
    with (
        open_database(settings) as database,
        announcing(settings, database) as announce,
        stop_on_signals(stop.set),
    ):
        if with_parent:
            service.listen_here(settings, database, stop=stop, say=click.echo, announce=announce, one_of_several=True)
        else:
            service.listen(
                settings,
                database,
                stop=stop,
                say=click.echo,
                announce=announce,
                command=[sys.executable, "-m", "worker.cli", *verbose, "listen", "--with-parent"],
            )
