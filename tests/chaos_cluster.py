"""A ledger on PostgreSQL with a broker, and machines that reach both through proxies.

Three machines with a supervised worker each: one whose clock is right, one an hour ahead, one
an hour behind. Each has a home folder of its own.
"""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from ledger_rows import add_bundle, register_films, settings_for
from passthrough_worker import command
from proxy import Proxy
from servers import BrokerServer, PostgresqlServer
from shifted_clock import VARIABLE
from sqlalchemy import func, make_url, select, text

from schema import tables
from schema.database import Database
from worker.queue.app import make_app
from worker.queue.tasks import register
from worker.queue.tickets import announcing

#: Machine → seconds by which its clock is ahead.
MACHINES = {"right": 0.0, "ahead": 3600.0, "behind": -3600.0}
LEASE_SECONDS = 3.0
#: A worker that stays stuck for so long ends, and its supervisor starts it again.
STALL_SECONDS = 16.0
#: What a client that was cut off in the middle of a transaction may hold up others.
SESSION_LIMITS = {"options": "-c idle_in_transaction_session_timeout=4s -c lock_timeout=3s"}
OPEN = ("ready", "leased", "delayed")
SESSIONS = """
    SELECT pid, pg_blocking_pids(pid), state, wait_event_type, wait_event, statement_timestamp() - xact_start AS age,
        left(query, 200)
    FROM pg_stat_activity WHERE datname = current_database() AND xact_start IS NOT NULL ORDER BY xact_start"""


class DatabaseProxy(Proxy):
    """Can strike at a certain moment: see :meth:`at_next`."""

    def __init__(self, target: int) -> None:
        super().__init__(target)
        self._strike: tuple[Callable[[bytes, bool], bool], Callable[[], object]] | None = None
        self._struck = threading.Event()
        self.on_piece = self._look

    @contextmanager
    def at_next(self, moment: Callable[[bytes, bool], bool], strike: Callable[[], object]) -> Iterator[threading.Event]:
        """Strike when ``moment`` knows a piece, (bytes, whether it comes from the client), before that passes on."""
        self._struck.clear()
        self._strike = (moment, strike)
        try:
            yield self._struck
        finally:
            self._strike = None

    def _look(self, piece: bytes, from_client: bool) -> None:
        armed = self._strike
        if armed is not None and armed[0](piece, from_client):
            self._strike = None
            armed[1]()
            self._struck.set()


@dataclass
class Machine:
    """A computer with a supervised worker that is named like it."""

    home: Path
    name: str
    clock_shift: float
    settings: dict[str, Any]
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def run(self, mode: str = "supervise", *, name: str | None = None) -> subprocess.Popen[bytes]:
        """Start a worker here; ``name`` (default: the machine's) may be taken."""
        options = {
            "home": str(self.home),
            "name": name or self.name,
            "settings": self.settings,
            "seconds_per_film": 0.15,
            "stay": True,
        }
        environment = {**os.environ, VARIABLE: str(self.clock_shift)}
        with (self.home / "log").open("ab") as log:
            process = subprocess.Popen(command(mode, options), stdin=subprocess.PIPE, stderr=log, env=environment)
        self.processes.append(process)
        return process

    @property
    def log(self) -> str:
        return (self.home / "log").read_text("utf-8", "replace")

    def workers(self) -> list[psutil.Process]:
        """The supervised worker; none while the machine is down or its worker starts again."""
        found: list[psutil.Process] = []
        for supervisor in self.processes[:1]:
            with contextlib.suppress(psutil.NoSuchProcess):
                found += psutil.Process(supervisor.pid).children()
        return found

    def kill_worker(self) -> None:
        for process in self.workers():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def kill_all(self) -> None:
        """What a power cut does; the worker's children end by themselves when it does."""
        for process in self.processes:
            family = []
            with contextlib.suppress(psutil.NoSuchProcess):
                family = psutil.Process(process.pid).children(recursive=True)
            process.kill()
            process.wait()
            for child in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()
            assert process.stdin is not None
            process.stdin.close()
        self.processes.clear()


class Cluster:
    """A ledger on PostgreSQL, a broker, proxies before both, and machines."""

    def __init__(
        self, folder: Path, url: str, postgresql: PostgresqlServer, broker: BrokerServer, dice: random.Random
    ) -> None:
        self.folder, self.dice = folder, dice
        self.postgresql, self.broker = postgresql, broker
        self.database = Database(url)
        add_bundle(self.database)
        self.database_proxy, self.broker_proxy = DatabaseProxy(postgresql.port), Proxy(broker.port)
        through = make_url(url).set(port=self.database_proxy.port).update_query_dict(SESSION_LIMITS)
        self.settings = {
            "database_url": through.render_as_string(hide_password=False),
            "broker_url": make_url(broker.url).set(port=self.broker_proxy.port).render_as_string(hide_password=False),
            "claim_size": 3,
            "lease_seconds": LEASE_SECONDS,
            "stall_seconds": STALL_SECONDS,
            "poll_seconds": 0.5,
            "backoff_seconds": 0.2,
        }
        self.machines = [self._machine(name, shift) for name, shift in MACHINES.items()]
        self.jobs: list[int] = []
        self.poison: set[int] = set()

    def _machine(self, name: str, shift: float) -> Machine:
        home = self.folder / name
        home.mkdir(parents=True)
        return Machine(home, name, shift, self.settings)

    def elsewhere(self, machine: Machine) -> Machine:
        """One more machine, on which somebody uses the same name."""
        return Machine(
            self._machine(f"{machine.name}-{time.monotonic_ns()}", 0.0).home, machine.name, 0.0, self.settings
        )

    def films(self, count: int, words: Sequence[str] = ()) -> None:
        """Register so many films; the first of them say ``words``, which are deadly."""
        folder = self.folder / f"films-{len(self.jobs)}"
        folder.mkdir()
        for number in range(count):
            (folder / f"{number:04d}").write_text(words[number] if number < len(words) else "film")
        jobs = register_films(self.database, [str(folder / f"{n:04d}").lstrip("/") for n in range(count)])
        self.jobs += jobs
        self.poison.update(jobs[: len(words)])

    @contextmanager
    def announcing(self) -> Iterator[Callable[[int], object]]:
        """What to call with the number of new films, as an intake does that reaches the broker as badly as anyone."""
        with announcing(settings_for(self.folder, **self.settings), self.database) as announce:
            yield announce

    def states(self) -> Counter[str]:
        with self.database.read() as connection:
            rows = connection.execute(select(tables.job.c.state, func.count()).group_by(tables.job.c.state)).all()
        return Counter(dict(rows))

    def sessions(self) -> str:
        """Who is in the middle of a transaction, and whom it waits for: where to look when something hangs."""
        with self.database.read() as connection:
            rows = connection.execute(text(SESSIONS)).all()
        return "\n".join(" | ".join(map(str, row)) for row in rows)

    def story(self) -> str:
        """Where films, sessions, proxies and machines stand: what to read when nothing goes on."""
        proxies = {"database": self.database_proxy.connections, "broker": self.broker_proxy.connections}
        logs = [f"{machine.name}, {machine.workers()}:\n{machine.log[-3000:]}" for machine in self.machines]
        return "\n".join([str(self.states()), self.sessions(), f"connections through proxies: {proxies}", *logs])

    def open(self) -> int:
        states = self.states()
        return sum(states[state] for state in OPEN)

    def answering(self) -> set[str]:
        """Names of the workers that answer Celery's ping now."""
        app = make_app(settings_for(self.folder, broker_url=self.broker.url))
        register(app)
        with contextlib.closing(app), app.connection_for_write() as connection:
            return set(app.control.inspect(timeout=1.0, connection=connection).ping() or {})

    def bears_name(self, machine: Machine) -> bool:
        """Whether the database knows the machine's worker as the one of its name."""
        with self.database.read() as connection:
            bearer = connection.scalar(select(tables.worker.c.process_id).where(tables.worker.c.name == machine.name))
        return bearer in [process.pid for process in machine.workers()]

    def any_machine(self) -> Machine:
        return self.dice.choice(self.machines)

    def let_pass(self, shortest: float, longest: float) -> None:
        """Let a while go by: it is what makes the faults meet the work at different places."""
        time.sleep(self.dice.uniform(shortest, longest))

    def close(self) -> None:
        for machine in self.machines:
            machine.kill_all()
        self.database_proxy.close()
        self.broker_proxy.close()
        self.database.close()
