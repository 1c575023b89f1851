"""Whatever workers, crashes and zombies do in whatever order: every film ends exactly once."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from ledger_rows import (
    Ledger,
    add_bundle,
    add_unverified,
    age_leases,
    digest,
    full_result,
    make_due,
    register_films,
    settings_for,
)
from sqlalchemy import func, select

from schema import tables
from schema.database import Database
from schema.tables import JobKind, Lane
from schema.view_tables import published_result
from worker import REVISION
from worker.errors import FilmError
from worker.queue.finish import SIGNALS_FROM_OUTSIDE, finish, postpone
from worker.queue.invariants import check_invariants
from worker.queue.leases import heartbeat, make_due_ready, sweep
from worker.queue.ledger import cancel, claim, register_worker, release, retry
from worker.queue.outcomes import Claim, ClaimedJob, Content, Outcome
from worker.queue.shadow import open_shadow_jobs, publish

FINAL = {"done", "ineligible"}
SETTLED = {*FINAL, "failed", "cancelled"}
WORKERS = ("one", "two", "three")

outcome_kinds = st.sampled_from(
    [
        "done",
        "done",
        "same",
        "spoiled",
        "ineligible",
        "picture",
        "permanent",
        "transient",
        "engine",
        "crash",
        "kill",
        "none",
    ]
)


class LedgerMachine(RuleBasedStateMachine):
    template: Path

    @initialize()
    def start(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        shutil.copy(self.template, self.folder / "carina.sqlite")
        self.database = Database(f"sqlite:///{self.folder / 'carina.sqlite'}")
        self.settings = settings_for(self.folder, max_attempts=3)
        self.workers = {name: register_worker(self.database, self.settings, name) for name in WORKERS}
        self.ledger = Ledger(self.database, self.settings, self.workers["one"])
        self.champion, self.candidate = 1, add_bundle(self.database, "candidate")
        self.point_champion()
        self.claims: list[Claim] = []
        self.final: dict[int, str] = {}
        self.lone_deaths: Counter[int] = Counter()
        self.films = 0
        self.copies = 0

    def teardown(self) -> None:
        if not hasattr(self, "database"):
            return
        self.drain()
        for worker in self.workers.values():
            worker.release_name()
        self.database.close()
        shutil.rmtree(self.folder)

    # -- what may happen --------------------------------------------------------------

    @rule(count=st.integers(1, 6), lane=st.sampled_from(list(Lane)))
    def register(self, count: int, lane: Lane) -> None:
        register_films(self.database, [f"film-{self.films + number}" for number in range(count)], lane=lane)
        self.films += count

    @precondition(lambda self: self.films)
    @rule(data=st.data())
    def register_again(self, data: st.DataObject) -> None:
        add_unverified(self.database, data.draw(st.integers(1, self.films)), f"copy-{self.copies}")
        self.copies += 1

    @rule(
        name=st.sampled_from(WORKERS),
        limit=st.integers(1, 5),
        drawn=st.floats(0, 1, exclude_max=True),
        suspects=st.booleans(),
    )
    def claim(self, name: str, limit: int, drawn: float, suspects: bool) -> None:
        waiting = [row for row in self.rows("ready") if row.kind != JobKind.SHADOW]
        claimed = claim(
            self.database,
            self.workers[name],
            bundle_id=self.champion,
            revision=REVISION,
            limit=limit,
            lease_seconds=3600.0,
            suspects=suspects,
            draw=lambda: drawn,
        )
        fresh = [row.id for row in waiting if row.crashes == 0]
        if claimed is None:
            assert not fresh and not (waiting and suspects)
            return
        taken = [item.id for item in claimed.jobs]
        assert set(taken) <= {row.id for row in waiting}
        if claimed.suspect:
            assert suspects and len(taken) == 1
        else:
            assert len(taken) <= limit
            if drawn >= 0.3:
                assert taken == fresh[:limit]
        self.claims.append(claimed)

    # -- a bundle on trial ------------------------------------------------------------

    @precondition(lambda self: self.films)
    @rule(last=st.none() | st.integers(1, 4))
    def try_the_candidate_out(self, last: int | None) -> None:
        shown = self.published()
        open_shadow_jobs(self.database, self.candidate, last=last, revision=REVISION)
        assert self.published() == shown

    @precondition(lambda self: self.films)
    @rule(kinds=st.lists(outcome_kinds, min_size=1, max_size=6))
    def quiet_hour(self, kinds: list[str]) -> None:
        """Nothing is left to do but what nobody waits for, and some of that is done."""
        self.ledger.bundle_id = self.champion
        while claimed := self.ledger.claim(8):
            outcomes = [self.outcome(item, "done") for item in claimed.jobs]
            finish(self.database, claimed, outcomes, settings=self.settings)
        open_shadow_jobs(self.database, self.candidate, revision=REVISION)
        for kind in kinds:
            claimed = self.ledger.claim(1, bundle_id=self.candidate, shadow=True)
            if claimed is not None:
                (item,) = claimed.jobs
                finish(self.database, claimed, [self.outcome(item, kind)] * (kind != "none"), settings=self.settings)
                if kind == "none":
                    self.claims.append(claimed)

    @rule(name=st.sampled_from(WORKERS), limit=st.integers(1, 5), suspects=st.booleans())
    def claim_in_the_shadow(self, name: str, limit: int, suspects: bool) -> None:
        ready = self.rows("ready")
        shadows = [row for row in ready if row.kind == JobKind.SHADOW and (suspects or row.crashes == 0)]
        claimed = claim(
            self.database,
            self.workers[name],
            bundle_id=self.candidate,
            revision=REVISION,
            limit=limit,
            lease_seconds=3600.0,
            suspects=suspects,
            shadow=True,
        )
        if any(row.kind != JobKind.SHADOW for row in ready) or not shadows:
            assert claimed is None
            return
        assert claimed is not None
        assert {item.id for item in claimed.jobs} <= {row.id for row in shadows}
        self.claims.append(claimed)

    @precondition(lambda self: any(row.kind == JobKind.SHADOW for row in self.rows()))
    @rule()
    def promote(self) -> None:
        """The candidate serves; the one that served is on trial from now on."""
        read = {row.instance_id for row in self.rows(*FINAL) if row.kind == JobKind.SHADOW}
        self.champion, self.candidate = self.candidate, self.champion
        with self.database.write() as connection:
            published = publish(connection, self.champion)
        self.point_champion()
        assert published <= len(read)
        assert not [row for row in self.rows("ready", "delayed", "leased") if row.kind == JobKind.SHADOW]

    @precondition(lambda self: self.claims)
    @rule(data=st.data())
    def renew(self, data: st.DataObject) -> None:
        claimed = self.pick(data)
        assert heartbeat(self.database, claimed.lease_id, 3600.0) == self.lease_exists(claimed)

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), keep=st.booleans())
    def finish(self, data: st.DataObject, keep: bool) -> None:
        """Finish a batch, in part or again, also one whose lease is long gone."""
        claimed = self.pick(data)
        kinds = [(item, data.draw(outcome_kinds)) for item in claimed.jobs]
        outcomes = [self.outcome(item, kind) for item, kind in kinds if kind != "none"]
        held = self.held(claimed)
        before = {row.id: row for row in self.rows()}
        report = finish(self.database, claimed, outcomes, settings=self.settings)
        asked = {outcome.job.id for outcome in outcomes}
        assert set(report.states) == asked & held
        assert set(report.already) | set(report.fenced) == asked - held
        after = {row.id: row for row in self.rows()}
        for number in asked - held:
            assert after[number] == before[number]
        for outcome in outcomes:
            if outcome.job.id in held and outcome.crash is not None:
                self.judge_death(claimed, outcome, after[outcome.job.id])
        if not keep:
            self.claims.remove(claimed)

    @precondition(lambda self: self.claims)
    @rule(data=st.data())
    def postpone(self, data: st.DataObject) -> None:
        claimed = self.pick(data)
        held = self.held(claimed)
        report = postpone(self.database, claimed, FilmError("ENGINE_FAILED"), settings=self.settings)
        assert set(report.states) == held

    @precondition(lambda self: self.claims)
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        claimed = self.pick(data)
        held = self.held(claimed)
        assert release(self.database, claimed.lease_id) == len(held)

    @precondition(lambda self: self.claims)
    @rule(data=st.data())
    def holder_falls_silent(self, data: st.DataObject) -> None:
        claimed = self.pick(data)
        held = self.held(claimed)
        age_leases(self.database, claimed.lease_id)
        assert sweep(self.database).expired == len(held)

    @rule()
    def sweep(self) -> None:
        assert sweep(self.database).expired == 0

    @rule()
    def time_passes(self) -> None:
        waiting = len(self.rows("delayed"))
        make_due(self.database)
        assert make_due_ready(self.database) == waiting

    @rule(name=st.sampled_from(WORKERS))
    def worker_starts_again(self, name: str) -> None:
        self.workers[name].release_name()
        self.workers[name] = register_worker(self.database, self.settings, name)

    @rule()
    def retry(self) -> None:
        failed = {row.id for row in self.rows("failed")}
        count = retry(self.database, actor="tester")
        back = failed - {row.id for row in self.rows("failed")}
        assert len(back) == count
        for number in back:
            self.lone_deaths.pop(number, None)

    @precondition(lambda self: self.films)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        waiting = [row.id for row in self.rows("ready", "delayed") if row.kind == JobKind.VERIFY][:1]
        assert cancel(self.database, ids=waiting, actor="tester") == len(waiting)
        with self.database.write() as connection:
            connection.execute(
                tables.arrival.update()
                .where(tables.arrival.c.id.in_(select(tables.job.c.arrival_id).where(tables.job.c.id.in_(waiting))))
                .values(state="rejected", code="BAD_HEADER")
            )

    # -- what must hold ---------------------------------------------------------------

    @invariant()
    def the_ledger_is_sound(self) -> None:
        if not hasattr(self, "database"):
            return
        assert check_invariants(self.database) == []
        states = {row.id: row.state for row in self.rows()}
        for number, state in self.final.items():
            assert states[number] == state
        self.final = {number: state for number, state in states.items() if state in FINAL}
        with self.database.read() as connection:
            instances = connection.scalar(select(func.count()).select_from(tables.instance))
            leases = set(connection.scalars(select(tables.lease.c.id)))
        assert instances == self.films
        assert not self.published() & {row.id for row in self.rows() if row.kind == JobKind.SHADOW}
        assert leases >= {row.lease_id for row in self.rows("leased")}

    def drain(self) -> None:
        """A calm night: whatever happened before, every film comes to an end, and once."""
        age_leases(self.database)
        sweep(self.database)
        self.ledger.bundle_id = self.champion
        for turn in range(80 * (self.films + 1)):
            make_due(self.database)
            make_due_ready(self.database)
            # Verifications that wait for a suspect come back at once: only its share lets it through.
            claimed = self.ledger.claim(8, worker=self.workers["two"], draw=lambda turn=turn: turn % 10 / 10)
            if claimed is None:
                claimed = self.ledger.claim(8, bundle_id=self.candidate, shadow=True)
            if claimed is None:
                break
            outcomes = [self.outcome(item, "done") for item in claimed.jobs]
            finish(self.database, claimed, outcomes, settings=self.settings)
        self.the_ledger_is_sound()
        assert {row.state for row in self.rows()} <= SETTLED
        ended = {(row.instance_id, row.generation) for row in self.rows(*FINAL, "failed") if row.published}
        with self.database.read() as connection:
            films = select(tables.instance.c.id, tables.instance.c.generation)
            own = connection.execute(films.where(tables.instance.c.alias_of.is_(None))).all()
            # Whatever bundles came and went: no film is without an answer that people see.
            assert {tuple(film) for film in own} <= ended
            assert connection.scalar(select(func.count()).select_from(tables.lease)) == 0
            results = connection.scalar(select(func.count()).select_from(tables.segmentation))
        assert results == sum(row.state == "done" and row.kind != JobKind.VERIFY for row in self.rows())

    # -- helpers ----------------------------------------------------------------------

    def pick(self, data: st.DataObject) -> Claim:
        return self.claims[data.draw(st.integers(0, len(self.claims) - 1))]

    def rows(self, *states: str) -> list[Any]:
        statement = select(tables.job).order_by(tables.job.c.priority, tables.job.c.id)
        if states:
            statement = statement.where(tables.job.c.state.in_(states))
        with self.database.read() as connection:
            return list(connection.execute(statement))

    def published(self) -> set[int]:
        with self.database.read() as connection:
            return set(connection.scalars(select(published_result.c.job_id)))

    def point_champion(self) -> None:
        with self.database.write() as connection:
            connection.execute(tables.bundle_alias.delete())
            connection.execute(tables.bundle_alias.insert().values(alias="champion", bundle_id=self.champion))

    def held(self, claimed: Claim) -> set[int]:
        return {row.id for row in self.rows("leased") if row.lease_id == claimed.lease_id}

    def lease_exists(self, claimed: Claim) -> bool:
        with self.database.read() as connection:
            return connection.scalar(select(tables.lease.c.id).where(tables.lease.c.id == claimed.lease_id)) is not None

    def outcome(self, item: ClaimedJob, kind: str) -> Outcome:
        errors = {
            "ineligible": "LATERAL",
            "permanent": "DECODE_FAILED",
            "transient": "SOURCE_MISSING",
            "engine": "ENGINE_FAILED",
        }
        if kind in errors:
            return Outcome(item, error=FilmError(errors[kind]))
        if kind in ("crash", "kill"):
            return Outcome(item, crash={"crash": -11, "kill": -9}[kind])
        content = "the same" if kind == "same" else f"content-{item.instance_id}"
        if item.kind is JobKind.VERIFY:
            return Outcome(item, content=Content(digest("file", content), digest("content", content)))
        result = full_result(content, ineligible="NOT_A_CHEST" if kind == "picture" else None)
        if kind == "spoiled":
            result.measurements.append(result.measurements[0])
        return Outcome(item, result=result)

    def judge_death(self, claimed: Claim, outcome: Outcome, after: Any) -> None:
        """Convicted exactly if it died alone, and if by a signal from outside then three times."""
        number, code = outcome.job.id, outcome.crash
        if claimed.suspect:
            self.lone_deaths[number] += 1
        convicted = claimed.suspect and (code not in SIGNALS_FROM_OUTSIDE or self.lone_deaths[number] >= 3)
        assert after.state == ("failed" if convicted else "ready")
        assert after.code == "WORKER_CRASHED"
        if not convicted:
            assert after.crashes == outcome.job.crashes + 1
            assert (after.bundle_id is None) == (after.kind != JobKind.SHADOW)


@pytest.mark.parametrize("effort", ["short", pytest.param("long", marks=[pytest.mark.slow, pytest.mark.timeout(3600)])])
def test_every_film_ends_exactly_once(template: Path, effort: str) -> None:
    LedgerMachine.template = template
    examples, steps = {"short": (25, 30), "long": (400, 60)}[effort]
    short = effort == "short"
    run_state_machine_as_test(
        LedgerMachine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            derandomize=short,
            # Shrinking takes minutes: run the long one for a small example.
            phases=[Phase.generate] if short else list(Phase),
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
