"""``carina deliver``: a courier in a thread of its own for each destination."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from sqlalchemy.exc import DBAPIError

from schema.database import Database, is_busy
from worker.errors import CarinaError
from worker.peers.configuration import Destination, load_peers
from worker.results.delivery.courier import Courier, Tally
from worker.results.delivery.destinations import mirror
from worker.results.delivery.outbox import Outbox
from worker.results.delivery.senders import sender_to
from worker.settings import Settings

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Report:
    """What a delivery did: destination → what became of its outputs, and how many were put in by a backfill."""

    destinations: dict[str, Tally]
    filled: int = 0

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "backfilled": self.filled,
            "destinations": {name: asdict(tally) for name, tally in self.destinations.items()},
        }


def deliver(
    database: Database,
    settings: Settings,
    *,
    actor: str,
    stop: threading.Event,
    once: bool = False,
    only: Collection[str] = (),
    backfill: datetime | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Report:
    """Deliver to every destination until ``stop`` is set or, with ``once``, until nothing can be delivered now.

    Parameters
    ----------
    actor
        Who is noted with changed destinations.
    only
        Names of destinations to serve; empty for all.
    backfill
        Results finished since then are put in first, also those from before a destination was added.
    say
        Hears where to and what will be delivered.

    Raises
    ------
    CarinaError
        The file of ``CARINA_DELIVERY`` is wrong, or there is no such destination.
    """
    peers = load_peers(settings.delivery)
    if not peers.destinations:
        raise CarinaError("The file that CARINA_DELIVERY names has no [destination.NAME]. See docs/operations.md.")
    if unknown := sorted(set(only) - peers.destinations.keys()):
        raise CarinaError(f"No destination is called {', '.join(unknown)}: {', '.join(peers.destinations)} are known.")
    ids = mirror(database, peers.destinations, actor=actor)
    served = {name: one for name, one in peers.destinations.items() if not only or name in only}
    couriers = {}
    filled = 0
    for name, destination in served.items():
        outbox = make_outbox(database, settings, ids[name], destination)
        if backfill is not None:
            filled += outbox.fill(backfill=backfill)
        couriers[name] = Courier(database, settings, destination, outbox, stop)
        say(f"{name}: {', '.join(destination.outputs)} to {destination.peer.address}")
    _run(couriers, stop, once=once)
    return Report({name: courier.tally for name, courier in couriers.items()}, filled)


def make_outbox(database: Database, settings: Settings, number: int, destination: Destination) -> Outbox:
    """The outbox of a destination under these settings."""
    return Outbox(
        database,
        number,
        destination,
        backoff_seconds=settings.backoff_seconds,
        # One output that is answered at the last moment must not cost the lease.
        lease_seconds=max(settings.lease_seconds, 4 * destination.peer.timeout_seconds),
    )


def check_destination(settings: Settings, name: str) -> list[str]:
    """Ask a destination, or a source, of the file whether it would talk to us; lines for a person.

    Raises
    ------
    worker.peers.trouble.PeerError
        It would not.
    CarinaError
        The file is wrong, or names no such destination or source.
    """
    peers = load_peers(settings.delivery)
    found = peers.destinations.get(name) or peers.sources.get(name)
    if found is None:
        raise CarinaError(f"The file that CARINA_DELIVERY names has no destination or source called {name}.")
    with sender_to(found.peer) as sender:
        return sender.check()


def _run(couriers: dict[str, Courier], stop: threading.Event, *, once: bool) -> None:
    troubles: list[BaseException] = []

    def work(courier: Courier) -> None:
        try:
            with courier:
                if once:
                    courier.drain()
                else:
                    courier.run()
        except DBAPIError as error:
            # Asked to stop while the database is away: what is claimed comes back when its lease runs out.
            if not (stop.is_set() and is_busy(error)):
                troubles.append(error)
                stop.set()
        except BaseException as error:
            troubles.append(error)
            stop.set()

    threads = [
        threading.Thread(target=work, args=(courier,), name=f"deliver {name}") for name, courier in couriers.items()
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        # In pieces: a signal is only handled between them.
        while thread.is_alive():
            thread.join(0.5)
    if troubles:
        raise troubles[0]
