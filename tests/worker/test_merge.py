"""Shards merged are what one machine would have made of the same files."""

from __future__ import annotations

import csv
import itertools
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from intake_rows import (
    SITE_KEY,
    Pictures,
    arrival_at,
    film,
    header,
    make_champion,
    one,
    register,
    rows,
    source,
    work,
)
from ledger_rows import Ledger, add_bundle, digest, settings_for, template_database
from sqlalchemy import func, insert, select, text, update

from schema import tables
from schema.database import Database
from worker.errors import CarinaError
from worker.intake import conflicts
from worker.intake.register import Examined
from worker.intake.shards import Shard
from worker.merge import merging
from worker.merge.merging import MergeReport, merge
from worker.phantom import make_phantom, phantom_dataset
from worker.queue.finish import finish
from worker.queue.invariants import check_invariants
from worker.queue.ledger import register_worker, retry
from worker.queue.outcomes import Outcome
from worker.results.export import export_csv
from worker.settings import Settings

SHARDS = 3
REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return template_database(tmp_path_factory.mktemp("template"))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    (folder / "site.key").write_text(SITE_KEY.hex())
    return folder


@pytest.fixture
def settings(home: Path, database: Database) -> Settings:
    return settings_for(home, database_url=database.url.render_as_string(hide_password=False))


class Machine:
    """A database of its own, and what this machine finds in the files it takes."""

    def __init__(self, file: Path, template: Path, files: Sequence[tuple[Examined, str]], shard: Shard) -> None:
        shutil.copy(template, file)
        self.file = file
        self.database = Database(f"sqlite:///{file}")
        self.settings = settings_for(file.parent / f"{file.stem}-home", database_url=str(self.database.url))
        self.taken = [item for item, _ in files if shard.takes(item)]
        self.pictures: Pictures = {item.source.path: picture for item, picture in files}
        make_champion(self.database)

    def work(self) -> Machine:
        register(self.database, *self.taken)
        worker = register_worker(self.database, self.settings, self.file.stem)
        work(Ledger(self.database, self.settings, worker), self.pictures)
        worker.release_name()
        return self

    def close(self) -> None:
        self.database.close()


@contextmanager
def machines(
    folder: Path, template: Path, files: Sequence[tuple[Examined, str]], count: int = SHARDS
) -> Iterator[list[Machine]]:
    made = [
        Machine(folder / f"{number}-of-{count}.sqlite", template, files, Shard(number, count))
        for number in range(1, count + 1)
    ]
    yield made
    for machine in made:
        machine.close()


#: UID, path, picture; see ``intake_rows.outcome``.
FILMS: list[tuple[int, str, str]] = [
    (1, "one", "A"),
    (1, "one again", "A"),
    (1, "one other", "B"),
    (2, "two", "A"),
    (3, "three", "C"),
    (4, "four", "C"),
    (5, "five", "C"),
    (5, "five other", "D"),
    (6, "lateral", "?E"),
    (6, "after a lateral", "F"),
    (7, "poison", "!WORKER_CRASHED"),
    (8, "broken", "!DECODE_FAILED"),
    (8, "whole", "G"),
    (9, "whole again", "G"),
    (10, "lateral only", "?H"),
    (11, "lateral too", "?H"),
    *((20 + number, f"film {number}", f"P{number}") for number in range(12)),
]
FILES: list[tuple[Examined, str]] = [
    *((film(f"2.25.{uid}", path), picture) for uid, path, picture in FILMS),
    (film("2.25.12", "frames", number_of_frames=4), ""),
    (film("2.25.12", "frames and film"), "Q"),
    (Examined(source("empty"), None, "EMPTY_FILE"), ""),
    (Examined(source("cut"), None, "TRUNCATED_HEADER"), ""),
    (Examined(source("locked"), None, "NO_PERMISSION"), ""),
    (Examined(source("README"), None, "NOT_DICOM"), ""),
]


def table_of(database: Database, folder: Path) -> list[dict[str, str]]:
    export_csv(database, folder)
    with (folder / "films.csv").open() as stream:
        return list(csv.DictReader(stream))


def told(database: Database, folder: Path) -> list[tuple[str, ...]]:
    """films.csv but for the order of its rows, and which of the films of one content speaks for it."""
    contents = {row.id: row.content_hash for row in rows(database, tables.instance)}
    uids = {row.sop_instance_uid: contents[row.instance_id] for row in rows(database, tables.instance_identity)}
    shared = Counter(uids.values())
    found = []
    speaking: dict[str, list[tuple[str, ...]]] = {}
    for row in table_of(database, folder):
        content = uids.get(row["sop_instance_uid"])
        place = (row.pop("sop_instance_uid"), row.pop("source"))
        values = tuple(row.values())
        if content is not None and shared[content] > 1 and row["state"] in ("done", "alias", "ineligible"):
            speaking.setdefault(content, []).append(values)
            found.append((*place, content))
        else:
            found.append((*place, *values))
    for content, values in speaking.items():
        found += [(content, *value) for value in values]
    return sorted(found)


def dump(database: Database) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of every table."""
    with database.read() as connection:
        return {
            table.name: sorted(map(str, connection.execute(select(table)).all()))
            for table in tables.metadata.sorted_tables
        }


@pytest.fixture
def night(tmp_path: Path, template: Path) -> Iterator[list[Machine]]:
    """Three shards that are through."""
    with machines(tmp_path, template, FILES) as made:
        for machine in made:
            machine.work()
        yield made


@pytest.fixture
def alone(tmp_path: Path, template: Path) -> Iterator[Machine]:
    """One machine that read all the files."""
    with machines(tmp_path, template, FILES, 1) as (machine,):
        yield machine.work()


def merge_all(database: Database, settings: Settings, shards: Sequence[Machine], **options: Any) -> list[MergeReport]:
    return [merge(database, settings, machine.file, **options) for machine in shards]


def test_the_shards_share_the_work(night: list[Machine]) -> None:
    done = [sum(row.state == "done" for row in rows(machine.database, tables.job)) for machine in night]
    assert min(done) > 3


def test_shards_merged_are_one_night_on_one_machine(
    database: Database, settings: Settings, night: list[Machine], alone: Machine, tmp_path: Path
) -> None:
    seen: list[tuple[int, int]] = []
    reports = merge_all(database, settings, night, chunk=3, progress=lambda done, total: seen.append((done, total)))
    assert told(database, tmp_path) == told(alone.database, tmp_path)
    assert check_invariants(database) == []
    assert seen[-1][0] == seen[-1][1]
    assert [report.waiting for report in reports] == [0, 0, 0]
    assert sum(report.counts.left_out + report.counts.unchanged for report in reports) == 0
    for table in (tables.segmentation, tables.finding_score, tables.failure_flag, tables.heatmap, tables.attempt):
        assert len(rows(database, table)) >= len(rows(alone.database, table)) > 0
    with database.read() as connection:
        seen_files = connection.scalar(select(func.sum(tables.submission.c.files_seen)))
        others = connection.scalar(select(func.sum(tables.submission.c.not_dicom)))
    # Each shard saw for itself that one file is locked.
    assert (seen_files, others) == (len(FILES) + SHARDS - 1, 1)


def test_results_arrive_whole(database: Database, settings: Settings, night: list[Machine]) -> None:
    merge_all(database, settings, night)
    for machine in night:
        for job in rows(machine.database, tables.job, tables.job.c.state == "done", tables.job.c.kind == "process"):
            path = one(machine.database, tables.identity, tables.identity.c.arrival_id == job.arrival_id).path
            twin = rows(database, tables.job, tables.job.c.finished_lease == job.finished_lease)
            uid = one(
                machine.database,
                tables.instance_identity,
                tables.instance_identity.c.instance_id == job.instance_id,
            )
            here = one(
                database,
                tables.instance_identity,
                tables.instance_identity.c.sop_instance_uid == uid.sop_instance_uid,
            )
            film_row = one(database, tables.instance, tables.instance.c.id == here.instance_id)
            assert film_row.content_hash == digest("content", machine.pictures[path])
            if film_row.alias_of is not None:
                continue
            (mine,) = [other for other in twin if other.instance_id == here.instance_id and other.kind == "process"]
            for name in ("created_at", "started_at", "finished_at", "revision", "published", "wait_seconds"):
                assert getattr(mine, name) == getattr(job, name), name
            for table in (tables.segmentation, tables.finding_score, tables.region_measurement, tables.heatmap):
                ours = [row[1:] for row in rows(database, table, table.c.job_id == mine.id)]
                assert ours == [row[1:] for row in rows(machine.database, table, table.c.job_id == job.id)] != []
            flags = [row[2:] for row in rows(database, tables.failure_flag, tables.failure_flag.c.job_id == mine.id)]
            assert flags == [
                row[2:] for row in rows(machine.database, tables.failure_flag, tables.failure_flag.c.job_id == job.id)
            ]


def test_merging_again_changes_nothing(database: Database, settings: Settings, night: list[Machine]) -> None:
    merge_all(database, settings, night)
    before = dump(database)
    reports = merge_all(database, settings, night[::-1])
    assert dump(database) == before
    for report in reports:
        counts = report.counts
        assert (counts.films, counts.completed, counts.results, counts.files) == (0, 0, 0, 0)
        assert counts.unchanged > 0


def test_the_order_of_the_shards_does_not_matter(
    night: list[Machine], alone: Machine, home: Path, tmp_path: Path, template: Path
) -> None:
    expected = told(alone.database, tmp_path)
    for order in itertools.permutations(night):
        file = tmp_path / "merged.sqlite"
        shutil.copy(template, file)
        merged = Database(f"sqlite:///{file}")
        merge_all(merged, settings_for(home), order)
        assert told(merged, tmp_path) == expected
        assert check_invariants(merged) == []
        merged.close()


def test_an_interrupted_merge_goes_on(
    database: Database, settings: Settings, night: list[Machine], alone: Machine, tmp_path: Path
) -> None:
    class StoppedError(Exception):
        pass

    def stop(done: int, _total: int) -> None:
        if done >= 4:
            raise StoppedError

    for machine in night:
        with pytest.raises(StoppedError):
            merge(database, settings, machine.file, chunk=2, progress=stop)
    assert check_invariants(database) == []
    merge_all(database, settings, night)
    assert told(database, tmp_path) == told(alone.database, tmp_path)
    assert check_invariants(database) == []


def test_shards_merged_at_the_same_time_are_merged_once(
    database: Database, settings: Settings, night: list[Machine], alone: Machine, tmp_path: Path
) -> None:
    """Six people run the same command on three files."""
    with ThreadPoolExecutor(2 * SHARDS) as pool:
        merges = [pool.submit(merge, database, settings, machine.file, chunk=3) for machine in night * 2]
        reports = [merged.result() for merged in merges]
    assert told(database, tmp_path) == told(alone.database, tmp_path)
    assert len(rows(database, tables.submission)) == SHARDS
    assert check_invariants(database) == []
    assert sum(report.counts.left_out for report in reports) == 0
    before = dump(database)
    merge_all(database, settings, night)
    assert dump(database) == before


def test_two_merges_that_begin_in_the_same_moment_agree_on_the_submissions(
    database: Database, settings: Settings, night: list[Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    both_have_looked = threading.Barrier(2)
    look = merging._merged_before

    def look_together(*arguments: Any) -> Any:
        found = look(*arguments)
        # Whoever is kept from looking before the other has written cannot come here in time.
        with suppress(threading.BrokenBarrierError):
            both_have_looked.wait(1.0)
        return found

    monkeypatch.setattr(merging, "_merged_before", look_together)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: merge(database, settings, night[0].file), range(2)))
    assert len(rows(database, tables.submission)) == len(rows(night[0].database, tables.submission))
    assert check_invariants(database) == []


def test_a_shard_that_had_no_film_yet_is_recognised_later(
    database: Database, settings: Settings, template: Path, tmp_path: Path
) -> None:
    """Merged before its first film, and before its first file."""
    readme, empty = Examined(source("README"), None, "NOT_DICOM"), Examined(source("empty"), None, "EMPTY_FILE")
    shard = Machine(tmp_path / "shard.sqlite", template, [], Shard(1, 1))
    for files in ([readme], [empty], [film("2.25.1", "a")], [film("2.25.2", "b")]):
        register(shard.database, *files)
        merge(database, settings, shard.file)
    merge(database, settings, shard.file)
    assert len(rows(database, tables.arrival)) == 3
    assert len(rows(database, tables.submission)) == len(rows(shard.database, tables.submission))
    with database.read() as connection:
        seen, others = connection.execute(
            select(func.sum(tables.submission.c.files_seen), func.sum(tables.submission.c.not_dicom))
        ).one()
    assert (seen, others) == (4, 1)
    shard.close()


def test_merging_into_a_database_that_has_some_of_the_films(
    database: Database, settings: Settings, night: list[Machine], alone: Machine, tmp_path: Path
) -> None:
    """The target is waiting, done and failed with films that the shards read too."""
    add_bundle(database)
    make_champion(database)
    known = [item for item, _ in FILES if item.source.path in ("one", "three", "whole again", "film 3", "poison")]
    register(database, *known)
    worker = register_worker(database, settings, "target")
    ledger = Ledger(database, settings, worker)
    claim = ledger.must_claim(2)
    merge_all(database, settings, night)
    # Whoever held a film here comes too late.
    assert [row.state for row in rows(database, tables.job, tables.job.c.lease_id.is_not(None))] == []
    late = [Outcome(job, error=None, crash=-9) for job in claim.jobs]
    assert finish(database, claim, late, settings=settings).states == {}
    assert told(database, tmp_path) == told(alone.database, tmp_path)
    assert check_invariants(database) == []
    work(ledger, alone.pictures)
    assert told(database, tmp_path) == told(alone.database, tmp_path)
    worker.release_name()


def test_a_shard_that_was_not_through_is_finished_by_the_target_or_by_itself(
    database: Database, settings: Settings, alone: Machine, template: Path, tmp_path: Path
) -> None:
    with machines(tmp_path, template, FILES) as shards:
        for machine in shards:
            register(machine.database, *machine.taken)
        first, second, third = shards
        worker = register_worker(first.database, first.settings, "killed")
        Ledger(first.database, first.settings, worker).must_claim(4)
        worker.release_name()
        reports = merge_all(database, settings, shards)
        assert all(report.waiting > 0 for report in reports)
        states = {row.state for row in rows(database, tables.job)}
        assert states == {"ready", "ineligible"} or states == {"ready"}
        assert check_invariants(database) == []
        # Two go on by themselves, a worker of the target reads the films of the third.
        second.work()
        third.work()
        reports = merge_all(database, settings, [second, third])
        assert all(report.counts.completed > 0 for report in reports)
        assert check_invariants(database) == []
        worker = register_worker(database, settings, "target")
        work(Ledger(database, settings, worker), alone.pictures)
        worker.release_name()
        assert told(database, tmp_path) == told(alone.database, tmp_path)
        assert check_invariants(database) == []


def shard_of(tmp_path: Path, template: Path, name: str, *files: tuple[int, str, str]) -> Machine:
    made = [(film(f"2.25.{uid}", path), picture) for uid, path, picture in files]
    return Machine(tmp_path / name, template, made, Shard(1, 1)).work()


def states(database: Database) -> dict[str, str]:
    """Path → what became of the file, as films.csv has it."""
    with tempfile.TemporaryDirectory() as folder:
        return {Path(row["source"]).name: row["state"] for row in table_of(database, Path(folder))}


@pytest.mark.parametrize(
    ("here", "there", "expected"),
    [
        # path, picture in the target; path, picture in the shard; path → state afterwards
        (("a", "A"), ("b", "A"), {"a": "done", "b": "duplicate"}),
        (("a", "A"), ("b", "B"), {"a": "done", "b": "conflict"}),
        (("a", "!DECODE_FAILED"), ("b", "B"), {"a": "rejected", "b": "done"}),
        (("a", "?A"), ("b", "B"), {"a": "rejected", "b": "done"}),
        (("a", "A"), ("b", "!DECODE_FAILED"), {"a": "done", "b": "rejected"}),
        (("a", "A"), ("b", "?B"), {"a": "done", "b": "conflict"}),
        (("a", "!DECODE_FAILED"), ("a", "A"), {"a": "done"}),
        (("a", "?A"), ("a", "A"), {"a": "done"}),
        (("a", "A"), ("a", "!DECODE_FAILED"), {"a": "done"}),
        (("a", "!DECODE_FAILED"), ("a", "?A"), {"a": "ineligible"}),
        (("a", "!DECODE_FAILED"), ("b", "!NO_PIXEL_DATA"), {"a": "failed", "b": "rejected"}),
    ],
)
def test_one_film_in_both(
    database: Database,
    settings: Settings,
    template: Path,
    tmp_path: Path,
    here: tuple[str, str],
    there: tuple[str, str],
    expected: dict[str, str],
) -> None:
    target = shard_of(tmp_path, template, "here.sqlite", (1, *here), (2, "else", "Z"))
    shard = shard_of(tmp_path, template, "there.sqlite", (1, *there), (3, "other", "Y"))
    if here[0] == there[0]:
        # One file has one content, whatever came of it.
        with target.database.write() as connection:
            for table in (tables.instance, tables.arrival):
                same = update(table).where(table.c.content_hash == digest("content", here[1]))
                connection.execute(same.values(content_hash=digest("content", there[1])))
    merge_all(database, settings, [target, shard])
    assert states(database) == {**expected, "else": "done", "other": "done"}
    assert check_invariants(database) == []
    before = dump(database)
    merge_all(database, settings, [shard, target])
    assert dump(database) == before
    target.close()
    shard.close()


def test_a_file_nobody_read_yet_gives_its_place_to_a_result(
    database: Database, settings: Settings, template: Path, tmp_path: Path
) -> None:
    register(database, film("2.25.1", "unread"), film("2.25.2", "alike"))
    shard = shard_of(tmp_path, template, "shard.sqlite", (1, "read", "A"), (2, "copy", "B"), (2, "other", "C"))
    merge(database, settings, shard.file)
    assert states(database) == {
        "unread": "ready", "read": "done", "alike": "ready", "copy": "done", "other": "conflict"
    }  # fmt: skip
    assert arrival_at(database, "unread").state == "unverified"
    assert check_invariants(database) == []
    before = dump(database)
    merge(database, settings, shard.file)
    assert dump(database) == before
    worker = register_worker(database, settings, "target")
    work(Ledger(database, settings, worker), {"unread": "C", "alike": "B"})
    worker.release_name()
    assert states(database) == {
        "unread": "conflict", "read": "done", "alike": "duplicate", "copy": "done", "other": "conflict"
    }  # fmt: skip
    shard.close()


def test_what_the_shard_could_not_compare_here_is_verified_here(
    database: Database, settings: Settings, template: Path, tmp_path: Path
) -> None:
    register(database, film("2.25.1", "first"))
    shard = shard_of(tmp_path, template, "shard.sqlite", (1, "x", "!DECODE_FAILED"), (1, "y", "!NO_PIXEL_DATA"))
    ineligible = shard_of(tmp_path, template, "more.sqlite", (1, "z", "?A"), (1, "z again", "?A"))
    merge_all(database, settings, [shard, ineligible])
    assert check_invariants(database) == []
    worker = register_worker(database, settings, "target")
    work(Ledger(database, settings, worker), {"first": "!NO_PIXEL_DATA", "z": "?A", "z again": "?A"})
    worker.release_name()
    assert {name for name, state in states(database).items() if state == "ineligible"} <= {"z", "z again"}
    assert check_invariants(database) == []
    for machine in (shard, ineligible):
        machine.close()


def test_two_bundles_stand_side_by_side(database: Database, settings: Settings, template: Path, tmp_path: Path) -> None:
    first = shard_of(tmp_path, template, "first.sqlite", (1, "a", "A"))
    second = Machine(tmp_path / "second.sqlite", template, [(film("2.25.2", "b"), "A")], Shard(1, 1))
    newer = add_bundle(second.database, version="2")
    make_champion(second.database, newer)
    register(second.database, *second.taken)
    worker = register_worker(second.database, second.settings, "second")
    work(Ledger(second.database, second.settings, worker, bundle_id=newer), second.pictures)
    worker.release_name()
    merge_all(database, settings, [first, second])
    # One picture under two names: both results are the film's, and the other name is its alias.
    assert sorted(states(database).values()) == ["alias", "done"]
    canonical = one(database, tables.instance, tables.instance.c.alias_of.is_(None))
    done = rows(database, tables.job, tables.job.c.state == "done")
    assert [job.instance_id for job in done] == [canonical.id] * 2
    assert {job.bundle_id for job in done} == {row.id for row in rows(database, tables.bundle)}
    assert one(database, tables.bundle_alias).alias == "champion"
    assert check_invariants(database) == []
    for machine in (first, second):
        machine.close()


def test_what_was_decided_in_the_target_stays(
    database: Database, settings: Settings, template: Path, tmp_path: Path
) -> None:
    shard = shard_of(tmp_path, template, "shard.sqlite", (1, "a", "A"), (1, "b", "B"), (2, "c", "!DECODE_FAILED"))
    merge(database, settings, shard.file)
    conflicts.accept(database, arrival_at(database, "b").id, "somebody")
    assert retry(database, actor="somebody", codes=["DECODE_FAILED"]) == 1
    before = dump(database)
    merge(database, settings, shard.file)
    assert dump(database) == before
    assert states(database) == {"a": "conflict", "b": "ready", "c": "ready"}
    shard.close()


def test_a_file_that_one_shard_could_not_read_is_another_shards_film(
    database: Database, settings: Settings, template: Path, tmp_path: Path
) -> None:
    locked = Examined(source("a"), None, "NO_PERMISSION")
    refused = Machine(tmp_path / "refused.sqlite", template, [(locked, "")], Shard(1, 1)).work()
    read = shard_of(tmp_path, template, "read.sqlite", (1, "a", "A"))
    merge_all(database, settings, [refused, read, refused])
    assert states(database) == {"a": "done"}
    assert len(rows(database, tables.arrival)) == 1
    assert check_invariants(database) == []
    for machine in (refused, read):
        machine.close()


PICTURES = st.sampled_from(["A", "B", "C", "?D", "?E", "!DECODE_FAILED", "!NO_PIXEL_DATA"])


@given(
    st.lists(st.tuples(st.integers(1, 5), PICTURES), min_size=1, max_size=10),
    st.permutations(range(SHARDS)),
    st.integers(1, 4),
)
@hypothesis_settings(max_examples=25, deadline=None)
def test_any_files_in_any_order(template: Path, files: list[tuple[int, str]], order: list[int], chunk: int) -> None:
    made = [(film(f"2.25.{uid}", f"f{number}"), picture) for number, (uid, picture) in enumerate(files)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        home = folder / "home"
        home.mkdir()
        (home / "site.key").write_text(SITE_KEY.hex())
        shutil.copy(template, folder / "merged.sqlite")
        merged = Database(f"sqlite:///{folder / 'merged.sqlite'}")
        with machines(folder, template, made) as shards, machines(folder, template, made, 1) as (alone,):
            for machine in (*shards, alone):
                machine.work()
            merge_all(merged, settings_for(home), [shards[number] for number in order], chunk=chunk)
            assert check_invariants(merged) == []
            assert told(merged, folder) == told(alone.database, folder)
            before = dump(merged)
            merge_all(merged, settings_for(home), shards)
            assert dump(merged) == before
        merged.close()


@given(
    st.lists(st.tuples(st.integers(1, 3), PICTURES, st.integers(0, 2)), min_size=1, max_size=10),
    st.sets(st.integers(0, 2)),
    st.lists(st.integers(0, 2), min_size=3, max_size=6),
)
@example([(3, "A", 1), (3, "A", 2), (3, "?E", 0)], {1}, [1, 0, 0])
@hypothesis_settings(max_examples=25, deadline=None)
def test_machines_that_shared_no_rule_lose_nothing(
    template: Path, files: list[tuple[int, str, int]], idle: set[int], order: list[int]
) -> None:
    """Files of one UID on several machines, some of which did not get to their work."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        home = folder / "home"
        home.mkdir()
        (home / "site.key").write_text(SITE_KEY.hex())
        shutil.copy(template, folder / "merged.sqlite")
        merged = Database(f"sqlite:///{folder / 'merged.sqlite'}")
        pictures = {f"f{number}": picture for number, (_, picture, _) in enumerate(files)}
        made = []
        for place in range(3):
            own = [(film(f"2.25.{u}", f"f{n}"), p) for n, (u, p, where) in enumerate(files) if where == place]
            machine = Machine(folder / f"{place}.sqlite", template, own, Shard(1, 1))
            register(machine.database, *machine.taken) if place in idle else machine.work()
            made.append(machine)
        for number in (*order, 0, 1, 2):
            merge(merged, settings_for(home), made[number].file, chunk=2)
            assert check_invariants(merged) == []
        # A file that waits to be compared is settled when its machine comes once more, after the film's result.
        merge_all(merged, settings_for(home), made)
        before = dump(merged)
        merge_all(merged, settings_for(home), made)
        assert dump(merged) == before
        worker = register_worker(merged, settings_for(home), "target")
        work(Ledger(merged, settings_for(home), worker), pictures)
        worker.release_name()
        assert check_invariants(merged) == []
        found = Counter(row.state for row in rows(merged, tables.arrival))
        assert found.total() == len(files) and found["unverified"] == 0
        for uid in {uid for uid, _, _ in files}:
            usable = {digest("content", p) for u, p, _ in files if u == uid and p[0] not in "?!"}
            instance_id = one(
                merged, tables.instance_identity, tables.instance_identity.c.sop_instance_uid == f"2.25.{uid}"
            ).instance_id
            row = one(merged, tables.instance, tables.instance.c.id == instance_id)
            done = [
                job for job in rows(merged, tables.job, tables.job.c.instance_id == (row.alias_of or row.id))
                if job.kind == "process" and job.state == "done" and job.published
            ]  # fmt: skip
            assert bool(usable) == bool(done)
            assert not usable or row.content_hash in usable
        for machine in made:
            machine.close()
        merged.close()


def test_a_chunk_that_collides_with_another_process_is_decided_anew(
    database: Database, settings: Settings, template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = shard_of(tmp_path, template, "shard.sqlite", (1, "a", "A"))
    real = merging.merge_films
    tries: list[int] = []

    def collide(*arguments: Any) -> Any:
        tries.append(1)
        if len(tries) < 3:
            arguments[0].execute(insert(tables.bundle_alias).values(alias="nonsense", bundle_id=1))
        return real(*arguments)

    monkeypatch.setattr(merging, "merge_films", collide)
    report = merge(database, settings, shard.file)
    assert (len(tries), report.counts.films) == (3, 1)
    shard.close()


def test_a_shard_of_another_version_is_refused(
    database: Database, settings: Settings, night: list[Machine], tmp_path: Path
) -> None:
    with night[0].database.write() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '0000'"))
    with pytest.raises(CarinaError, match=r"1-of-3.sqlite is of version 0000, this program needs .* carina db upgrade"):
        merge(database, settings, night[0].file)
    assert rows(database, tables.instance) == []


def test_another_site_key_is_refused(
    database: Database, settings: Settings, night: list[Machine], home: Path, tmp_path: Path
) -> None:
    merge(database, settings, night[0].file)
    (home / "site.key").write_text("00" * 32)
    with pytest.raises(CarinaError, match="The database to merge into was written under another site key"):
        merge(database, settings, night[1].file)
    empty = Database(f"sqlite:///{tmp_path / 'fresh.sqlite'}")
    empty.upgrade()
    with pytest.raises(CarinaError, match=r"2-of-3.sqlite was written under another site key.*site.key"):
        merge(empty, settings, night[1].file)
    assert rows(empty, tables.instance) == []
    empty.close()


def test_one_foreign_film_is_enough_to_refuse(database: Database, settings: Settings, night: list[Machine]) -> None:
    last = max(row.id for row in rows(night[0].database, tables.instance))
    with night[0].database.write() as connection:
        connection.execute(update(tables.instance).where(tables.instance.c.id == last).values(key=digest("other")))
    with pytest.raises(CarinaError, match="another site key"):
        merge(database, settings, night[0].file)


def test_another_bundle_of_the_same_name_is_refused(
    database: Database, settings: Settings, night: list[Machine]
) -> None:
    merge(database, settings, night[0].file)
    with night[1].database.write() as connection:
        connection.execute(update(tables.bundle).values(sha256=digest("rebuilt")))
    with pytest.raises(CarinaError, match="another bundle named test:1"):
        merge(database, settings, night[1].file)


@pytest.mark.parametrize("whole_pages", [1, 4, 30])
def test_a_damaged_shard_is_named_and_what_it_lacks_comes_with_a_whole_copy(
    database: Database, settings: Settings, night: list[Machine], tmp_path: Path, whole_pages: int
) -> None:
    copy = tmp_path / "copy.sqlite"
    with closing(sqlite3.connect(night[0].file)) as connection:
        connection.execute("VACUUM INTO ?", [str(copy)])
    whole = copy.read_bytes()
    copy.write_bytes(whole[: 4096 * whole_pages])
    with pytest.raises(CarinaError, match=r"copy\.sqlite cannot be read: .*malformed"):
        merge(database, settings, copy, chunk=2)
    assert check_invariants(database) == []
    copy.write_bytes(whole)
    merge_all(database, settings, night)
    before = dump(database)
    merge(database, settings, copy)
    assert dump(database) == before


def test_what_is_no_shard_is_refused(database: Database, settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello")
    for name, words in (("text", "not an SQLite database"), ("absent", "cannot be read")):
        with pytest.raises(CarinaError, match=words):
            merge(database, settings, tmp_path / name)
    if database.dialect == "sqlite":
        with pytest.raises(CarinaError, match="the database to merge into"):
            merge(database, settings, Path(database.url.database or ""))


def test_odd_uids_do_not_look_like_another_site(
    database: Database, settings: Settings, template: Path, tmp_path: Path
) -> None:
    odd = [film("1." * 60 + "1", "long"), film("no uid\0", "odd"), Examined(source("cut"), header("2" * 64))]
    shard = Machine(tmp_path / "odd.sqlite", template, [(item, item.source.path) for item in odd], Shard(1, 1)).work()
    assert merge(database, settings, shard.file).counts.films == 3
    shard.close()


def carina(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "worker.cli", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250)


def array_task(environment: dict[str, str], folder: Path, number: int) -> subprocess.CompletedProcess[str]:
    """Run the script of docs/cluster-schedulers.md as SLURM would."""
    page = (REPOSITORY / "docs" / "cluster-schedulers.md").read_text("utf-8")
    (folder / "bin").mkdir(exist_ok=True)
    (folder / "local").mkdir(exist_ok=True)
    program = folder / "bin" / "carina"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m worker.cli "$@"\n')
    program.chmod(0o755)
    slurm = {
        "SLURM_ARRAY_TASK_ID": str(number),
        "SLURM_JOB_ID": f"100{number}",
        "SLURM_CPUS_PER_TASK": "1",
        "SHARDS": "2",
        "FILMS": str(folder / "films"),
        "TMPDIR": str(folder / "local"),
        "PATH": f"{folder / 'bin'}:{Path(sys.executable).parent}:{environment['PATH']}",
    }
    script = page.partition("```bash\n")[2].partition("```")[0]
    return subprocess.run(
        ["bash", "-c", script], env={**environment, **slurm}, capture_output=True, text=True, timeout=250
    )


def test_the_command_line_from_films_to_one_table(tmp_path: Path) -> None:
    films = tmp_path / "films"
    films.mkdir()
    for seed in range(4):
        phantom_dataset(make_phantom(seed, rows=256, columns=224)).save_as(films / f"{seed}.dcm")
    (films / "empty.dcm").write_bytes(b"")
    environment = {**os.environ, "CARINA_HOME": str(tmp_path / "home"), "CARINA_BROKER_URL": "redis://nowhere.invalid"}
    wrong = carina(environment, "run", str(films), "--shard", "3/2")
    assert wrong.returncode == 2
    assert "no shard 3/2" in wrong.stderr
    assert carina(environment, "run", str(films), "--shard-folder", str(tmp_path)).returncode == 2
    first = carina(environment, "run", str(films), "--shard", "1/2", "--json")
    second = array_task(environment, tmp_path, 2)
    again = array_task(environment, tmp_path, 2)
    assert sorted([first.returncode, second.returncode]) == [0, 3], "the empty file is in one shard"
    assert again.returncode == second.returncode
    files = sorted(str(file) for file in (tmp_path / "home" / "shards").iterdir())
    assert [Path(file).name for file in files] == ["carina-1-of-2.sqlite", "carina-2-of-2.sqlite"]
    assert list((tmp_path / "local").iterdir()) == []
    environment["CARINA_BROKER_URL"] = ""
    merged = carina(environment, "merge", *files, "--json")
    assert merged.returncode == 0, merged.stderr
    assert sum(report["results"] for report in json.loads(merged.stdout)) == 4
    assert carina(environment, "merge", *files).returncode == 0
    assert carina(environment, "merge", str(films / "0.dcm")).returncode == 1
    out = carina(environment, "export", "--format", "csv", "--out", str(tmp_path / "out"))
    assert out.stdout.startswith("5 rows")
