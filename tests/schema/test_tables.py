from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import func, select
from sqlalchemy.exc import DBAPIError, IntegrityError
from stored_films import Films, digest, result

from schema import tables
from schema.database import Database
from schema.tables import ArrivalState, JobState
from worker.results.write import write_results

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("state", "values"),
    [
        ("leased", {"lease_id": None}),
        ("ready", {"lease_id": "lease-1"}),
        ("done", {"lease_id": "lease-1"}),
        ("failed", {"code": None}),
        ("ineligible", {"code": None}),
        ("delayed", {"code": None}),
        ("delayed", {"available_at": None}),
        ("done", {"finished_at": None}),
        ("done", {"bundle_id": None}),
        ("ready", {"bundle_id": 1}),
        ("delayed", {"bundle_id": 1}),
        ("ready", {"kind": "shadow", "published": False, "priority": 20}),
        ("cancelled", {"kind": "shadow", "published": False, "priority": 20}),
        ("ready", {"kind": "shadow", "published": True, "priority": 20, "bundle_id": 1}),
        ("ready", {"kind": "shadow", "published": False, "priority": 10, "bundle_id": 1}),
        ("nonsense", {}),
        ("ready", {"kind": "nonsense"}),
        ("ready", {"kind": "verify", "arrival_id": None}),
        ("ready", {"arrival_id": 77}),
        ("ready", {"priority": None}),
    ],
)
def test_an_impossible_job_is_refused(films: Films, state: str, values: dict[str, Any]) -> None:
    instance = films.instance()
    films.count = 0
    films.lease()
    with pytest.raises(IntegrityError):
        films.job(instance, state, **values)


@pytest.mark.parametrize("state", list(JobState))
def test_every_state_is_possible(films: Films, state: JobState) -> None:
    assert films.film(state.value) == 1


@pytest.mark.parametrize("state", [JobState.DONE, JobState.INELIGIBLE])
def test_final_states_are_final(films: Films, state: JobState) -> None:
    job = films.film(state.value)
    for other in (item for item in JobState if item is not state):
        values: dict[str, Any] = {"state": other.value, "code": "LATERAL", "available_at": NOW, "lease_id": None}
        if other is JobState.LEASED:
            values["lease_id"] = films.lease()
        with pytest.raises(DBAPIError, match="a finished job is final"):
            films.update(tables.job, job, **values)
    films.update(tables.job, job, detail="may be told better", published=False)
    assert films.value(select(tables.job.c.state)) == state.value


@pytest.mark.parametrize("state", ["failed", "cancelled", "delayed"])
def test_other_states_may_be_left(films: Films, state: str) -> None:
    job = films.film(state)
    films.update(tables.job, job, state="ready")
    assert films.value(select(tables.job.c.state)) == "ready"


@pytest.mark.parametrize("first", ["ready", "leased", "delayed"])
@pytest.mark.parametrize("second", ["ready", "leased", "delayed"])
def test_a_film_has_one_open_job(films: Films, first: str, second: str) -> None:
    films.film(first)
    with pytest.raises(IntegrityError):
        films.job(1, second, bundle_id=films.add_bundle("2") if second == "leased" else None)


def shadow(films: Films, bundle: int, state: str = "ready") -> int:
    values = {"kind": "shadow", "published": False, "priority": 20, "bundle_id": bundle}
    return films.job(1, state, **values)


@pytest.mark.parametrize("own", ["ready", "leased", "delayed", "done"])
def test_a_film_has_one_open_shadow_job_for_each_bundle_beside_its_own(films: Films, own: str) -> None:
    films.film(own)
    second, third = films.add_bundle("2"), films.add_bundle("3")
    shadow(films, second)
    shadow(films, third, "delayed")
    for state in ("ready", "leased", "delayed"):
        with pytest.raises(IntegrityError):
            shadow(films, second, state)
    shadow(films, second, "done")
    assert films.value(select(func.count()).select_from(tables.job)) == 4


def test_a_shadow_job_becomes_an_ordinary_one_unless_the_film_has_that_already(films: Films) -> None:
    films.film("done")
    second = films.add_bundle("2")
    job = shadow(films, second, "done")
    ordinary = {"kind": "process", "published": True, "priority": 10}
    films.update(tables.job, job, **ordinary)
    again = shadow(films, second, "done")
    with pytest.raises(IntegrityError):
        films.update(tables.job, again, **ordinary)


@pytest.mark.parametrize("ended", ["done", "failed", "ineligible", "cancelled"])
def test_an_ended_job_does_not_keep_a_film_from_a_new_one(films: Films, ended: str) -> None:
    films.film(ended)
    assert films.job(1, "ready") == 2


def test_a_film_is_done_once_for_each_bundle_revision_and_generation(films: Films) -> None:
    films.film("done")
    with pytest.raises(IntegrityError):
        films.job(1, "done")
    films.job(1, "done", revision=2)
    films.job(1, "done", generation=2)
    films.job(1, "done", bundle_id=films.add_bundle("2"))
    assert films.value(select(func.count()).select_from(tables.job)) == 4


def test_a_file_is_verified_once(films: Films) -> None:
    films.film("done")
    arrival = films.arrival("unverified", 1)
    films.job(1, "ready", kind="verify", arrival_id=arrival)
    with pytest.raises(IntegrityError):
        films.job(1, "failed", kind="verify", arrival_id=arrival)


def test_a_verify_job_is_done_without_a_bundle_and_may_stand_beside_the_films_own(films: Films) -> None:
    films.film("leased")
    arrival = films.arrival("unverified", 1)
    films.job(1, "done", kind="verify", arrival_id=arrival)
    assert films.value(select(func.count()).select_from(tables.job)) == 2


@pytest.mark.parametrize("state", list(ArrivalState))
def test_an_arrival_without_film_is_rejected_or_not_dicom(films: Films, state: ArrivalState) -> None:
    settled = state in (ArrivalState.REJECTED, ArrivalState.NOT_DICOM)
    if settled:
        films.arrival(state.value, None, code="EMPTY_FILE")
    with pytest.raises(IntegrityError):
        films.arrival(state.value, None, code=None if settled else "EMPTY_FILE")


def test_a_film_is_read_from_one_file(films: Films) -> None:
    films.film("ready")
    with pytest.raises(IntegrityError):
        films.arrival("instance", 1, current=True)
    films.arrival("instance", 1, current=False)
    with pytest.raises(IntegrityError):
        films.arrival("duplicate", films.instance(), current=True)


def test_a_file_is_registered_once(films: Films) -> None:
    films.arrival("rejected", None, code="EMPTY_FILE", path="a.zip", member="1.dcm")
    films.arrival("rejected", None, code="EMPTY_FILE", path="a.zip", member="2.dcm")
    with pytest.raises(IntegrityError):
        films.arrival("rejected", None, code="EMPTY_FILE", path="a.zip", member="1.dcm")


def test_one_content_is_one_film(films: Films) -> None:
    first = films.instance(content_hash=digest("a"))
    with pytest.raises(IntegrityError):
        films.instance(content_hash=digest("a"))
    films.instance(content_hash=digest("a"), alias_of=first)
    films.instance(content_hash=None)
    films.instance(content_hash=None)
    with pytest.raises(IntegrityError):
        films.update(tables.instance, first, alias_of=first)


def test_one_uid_is_one_film(films: Films) -> None:
    films.instance("1.2")
    with pytest.raises(IntegrityError):
        films.instance("1.2")


@pytest.mark.parametrize("age", [-1, 47_451])
def test_impossible_ages_are_refused(films: Films, age: int) -> None:
    with pytest.raises(IntegrityError):
        films.instance(age_days=age)


def test_an_alias_has_one_bundle_and_a_known_name(films: Films) -> None:
    for alias in ("champion", "winner"):
        with pytest.raises(IntegrityError):
            films.insert_plain(tables.bundle_alias, alias=alias, bundle_id=1)


@pytest.mark.parametrize("version", ["1", "2"])
def test_a_bundle_has_one_name_and_one_content(films: Films, version: str) -> None:
    with pytest.raises(IntegrityError):
        films.insert(tables.bundle, name="phantom", version=version, sha256=digest("bundle 1"), manifest={})


@pytest.mark.parametrize(("column", "value"), [("value", "perhaps"), ("source", "convenience")])
def test_a_label_says_what_it_means_and_why_it_was_asked_for(films: Films, column: str, value: str) -> None:
    film = films.film("done")
    said = {
        "instance_id": films.value(select(tables.job.c.instance_id).where(tables.job.c.id == film)),
        "finding": "pneumonia", "value": "present", "reader": "r1", "source": "random",
        "labelled_at": NOW,
    }  # fmt: skip
    films.insert(tables.label, **said)
    with pytest.raises(IntegrityError):
        films.insert(tables.label, **{**said, column: value})


def rebuild_row(**values: object) -> dict[str, object]:
    return {"stage": "films", "recipe": "r", "request": {}, "folder": "f", "results": {}, **values}


def test_one_rebuild_runs_at_a_time(films: Films) -> None:
    ended = NOW
    films.insert(tables.rebuild, **rebuild_row())
    films.insert(tables.rebuild, **rebuild_row(state="failed", finished_at=ended))
    films.insert(tables.rebuild, **rebuild_row(state="finished", finished_at=ended, bundle_id=1))
    with pytest.raises(IntegrityError):
        films.insert(tables.rebuild, **rebuild_row())


@pytest.mark.parametrize("values", [{"state": "finished"}, {"state": "paused"}, {"state": "failed"}])
def test_a_rebuild_that_ended_says_when_and_what_came_of_it(films: Films, values: dict[str, object]) -> None:
    ended = {} if values["state"] == "failed" else {"finished_at": NOW}
    with pytest.raises(IntegrityError):
        films.insert(tables.rebuild, **rebuild_row(**values, **ended))


def test_forgetting_a_job_forgets_its_result(database: Database, films: Films) -> None:
    job = films.film("done", stored=result(flags=("low_confidence",)))
    films.insert(tables.attempt, job_id=job, number=1, outcome="done")
    with database.write() as connection:
        connection.execute(tables.job.delete())
    for name in ("segmentation", "region_measurement", "failure_flag", "finding_score", "heatmap", "attempt"):
        assert films.value(select(func.count()).select_from(tables.metadata.tables[name])) == 0, name


def test_identity_can_be_dropped_alone(database: Database, films: Films) -> None:
    films.film("done", stored=result())
    with database.write() as connection:
        connection.execute(tables.identity.delete())
        connection.execute(tables.instance_identity.delete())
    assert films.value(select(func.count()).select_from(tables.segmentation)) == 1


@pytest.mark.parametrize(
    ("table", "column", "value"),
    [
        ("finding_score", "probability", 1.01),
        ("finding_score", "probability", -0.01),
        ("region_measurement", "area_fraction", 1.5),
        ("region_measurement", "area_pixels", -1),
        ("failure_flag", "source", "lost"),
        ("submission", "lane", "express"),
    ],
)
def test_impossible_values_are_refused(films: Films, table: str, column: str, value: object) -> None:
    job = films.film("done")
    with films.database.write() as connection:
        write_results(connection, [(job, result(flags=("low_confidence",)))])
    with pytest.raises(IntegrityError), films.database.write() as connection:
        connection.execute(tables.metadata.tables[table].update().values({column: value}))
