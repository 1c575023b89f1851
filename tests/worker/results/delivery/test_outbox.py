from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from delivery_rows import destination, destination_row, rows, sooner, states
from sqlalchemy import update
from sqlalchemy.exc import IntegrityError
from stored_films import Films, result

from schema import tables
from schema.database import Database
from schema.outputs import OutputKind
from worker.peers.configuration import Rules
from worker.peers.trouble import PeerError
from worker.results.delivery.destinations import mirror
from worker.results.delivery.outbox import LONGEST_REST_SECONDS, MAX_ATTEMPTS, Ended, Outbox

Make = Callable[..., Outbox]


def seconds_ahead(moment: datetime) -> float:
    return (moment - datetime.now(UTC)).total_seconds()


# Filling


def test_every_wanted_output_of_a_published_result_once(database: Database, films: Films, make_outbox: Make) -> None:
    jobs = {films.film(stored=result()), films.film(stored=result())}
    films.film(stored=result(), published=False)
    films.film("failed")
    films.film("ineligible", stored=result(ineligible="LATERAL"))
    outbox = make_outbox()
    assert [outbox.fill(), outbox.fill()] == [4, 0]
    assert {(row.job_id, row.output, row.revision, row.state) for row in rows(database)} == {
        (job, output, 1, "ready") for job in jobs for output in ("segmentation", "report")
    }
    # Another process, which starts with what the table knows.
    assert make_outbox().fill() == 0


def test_what_was_there_before_the_destination_needs_a_backfill(
    database: Database, films: Films, make_outbox: Make
) -> None:
    old, older = films.film(stored=result()), films.film(stored=result())
    with database.write() as connection:
        for job, days in ((old, 2), (older, 9)):
            then = datetime.now(UTC) - timedelta(days=days)
            connection.execute(update(tables.job).where(tables.job.c.id == job).values(finished_at=then))
    outbox = make_outbox()
    assert outbox.fill() == 0
    assert outbox.fill(backfill=datetime.now(UTC) - timedelta(days=3)) == 2
    assert {row.job_id for row in rows(database)} == {old}


def test_a_result_that_was_committed_late_is_noticed(database: Database, films: Films, make_outbox: Make) -> None:
    outbox = make_outbox()
    films.film(stored=result())
    assert outbox.fill() == 2
    late = films.film(stored=result())
    with database.write() as connection:
        then = datetime.now(UTC) - timedelta(minutes=5)
        connection.execute(update(tables.job).where(tables.job.c.id == late).values(finished_at=then))
    assert outbox.fill() == 2


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        (Rules(), {"plain", "flagged", "positive", "both"}),
        (Rules(only_flagged=True), {"flagged", "both"}),
        (Rules(only_positive=("pneumonia", "bronchitis")), {"positive", "both"}),
        (Rules(only_flagged=True, only_positive=("pneumonia",)), {"both"}),
        (Rules(lanes=("archive",)), {"flagged"}),
    ],
)
def test_rules(database: Database, films: Films, make_outbox: Make, rules: Rules, expected: set[str]) -> None:
    jobs = {
        "plain": films.film(stored=result()),
        "flagged": films.film(stored=result(flags=("missing_region",)), priority=10),
        "positive": films.film(stored=result(pneumonia=0.9)),
        "both": films.film(stored=result(flags=("missing_region",), pneumonia=0.9)),
    }
    make_outbox(rules=rules).fill()
    assert {row.job_id for row in rows(database)} == {jobs[name] for name in expected}


def test_what_a_result_has_not_got_is_not_put_in(database: Database, films: Films, make_outbox: Make) -> None:
    job = films.film(stored=result())
    with database.write() as connection:
        connection.execute(tables.heatmap.delete().where(tables.heatmap.c.job_id == job))
    make_outbox(outputs=tuple(OutputKind)).fill()
    assert [row.output for row in rows(database)] == ["segmentation", "report", "overlay"]


# Claiming


def test_urgent_films_first_and_an_output_after_the_other(films: Films, make_outbox: Make) -> None:
    jobs = [films.film(stored=result(), priority=priority) for priority in (10, 0, 10)]
    outbox = make_outbox(outputs=(OutputKind.REPORT, OutputKind.SEGMENTATION))
    outbox.fill()
    claimed = outbox.claim("a", 4)
    assert [(each.job_id, str(each.output)) for each in claimed] == [
        (jobs[1], "segmentation"), (jobs[1], "report"), (jobs[0], "segmentation"), (jobs[0], "report"),
    ]  # fmt: skip
    # The answer to the first claim was lost.
    assert outbox.claim("a", 4) == claimed
    assert [each.job_id for each in outbox.claim("b", 4)] == [jobs[2]] * 2
    assert outbox.claim("c", 4) == []


def test_of_many_senders_each_output_has_one(database: Database, films: Films, make_outbox: Make) -> None:
    for _ in range(12):
        films.film(stored=result())
    outbox = make_outbox()
    outbox.fill()
    taken: list[int] = []

    def sender(number: int) -> None:
        for turn in range(20):
            claimed = outbox.claim(f"{number}-{turn}", 3)
            taken.extend(each.id for each in claimed)
            outbox.record(f"{number}-{turn}", [Ended(each) for each in claimed])

    threads = [threading.Thread(target=sender, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == len(set(taken)) == 24
    assert states(database) == {"sent": 24}


def test_who_lost_the_lease_writes_nothing(database: Database, films: Films, make_outbox: Make) -> None:
    films.film(stored=result())
    outbox = make_outbox()
    outbox.fill()
    slow = outbox.claim("slow", 9)
    assert outbox.renew("slow") and not outbox.look().returning
    sooner(database, "leased_until")
    assert outbox.look().returning
    assert outbox.bring_back() == 2
    quick = outbox.claim("quick", 9)
    assert [each.id for each in quick] == [each.id for each in slow]
    assert not outbox.renew("slow")
    outbox.record("slow", [Ended(each, "REFUSED", final=True) for each in slow])
    assert outbox.give_back("slow") == 0
    outbox.record("quick", [Ended(each) for each in quick])
    assert states(database) == {"sent": 2}
    assert all(row.sent_at is not None and row.lease_id is None for row in rows(database))


def test_what_is_given_back_counts_no_attempt(database: Database, films: Films, make_outbox: Make) -> None:
    films.film(stored=result())
    outbox = make_outbox()
    outbox.fill()
    (first, _) = outbox.claim("a", 9)
    outbox.record("a", [Ended(first)])
    assert outbox.give_back("a") == 1
    assert [(row.state, row.attempts) for row in rows(database)] == [("sent", 1), ("ready", 0)]


def test_so_many_a_minute_and_no_more(database: Database, films: Films, make_outbox: Make) -> None:
    for _ in range(3):
        films.film(stored=result())
    outbox = make_outbox(per_minute=4)
    outbox.fill()
    assert (len(outbox.claim("a", 3)), len(outbox.claim("b", 3)), len(outbox.claim("c", 3))) == (3, 1, 0)
    for lease in ("a", "b"):
        outbox.record(lease, [Ended(each) for each in outbox.claim(lease, 0)])
    assert outbox.full() and outbox.claim("d", 3) == []
    sooner(database, "sent_at", 61.0)
    assert not outbox.full()
    assert len(outbox.claim("e", 3)) == 2


# Trouble


def test_passing_trouble_is_tried_again_later_and_later_and_then_given_up(
    database: Database, films: Films, make_outbox: Make
) -> None:
    films.film(stored=result())
    outbox = make_outbox(outputs=(OutputKind.REPORT,))
    outbox.fill()
    waits = []
    for attempt in range(1, MAX_ATTEMPTS + 1):
        (claimed,) = outbox.claim(f"{attempt}", 9)
        assert claimed.attempts == attempt
        outbox.record(f"{attempt}", [Ended(claimed, "SERVER_ERROR", "status 0110H")])
        (row,) = rows(database)
        if row.state == "delayed":
            waits.append(round(seconds_ahead(row.available_at), -1))
            assert outbox.claim("too soon", 9) == []
            sooner(database, "available_at")
            outbox.bring_back()
    assert waits == [10.0 * 2**n if n < 9 else 3600.0 for n in range(MAX_ATTEMPTS - 1)]
    assert (row.state, row.code, row.detail) == ("failed", "SERVER_ERROR", "status 0110H")


def test_lasting_trouble_is_given_up_at_once(database: Database, films: Films, make_outbox: Make) -> None:
    films.film(stored=result())
    outbox = make_outbox()
    outbox.fill()
    outbox.record("a", [Ended(each, "CANNOT_UNDERSTAND", final=True) for each in outbox.claim("a", 9)])
    assert states(database) == {"failed": 2}


def test_a_destination_in_trouble_rests_longer_and_longer_until_it_takes_something(
    database: Database, films: Films, make_outbox: Make
) -> None:
    films.film(stored=result())
    outbox = make_outbox()
    outbox.fill()
    assert not outbox.look().resting
    rests = [outbox.rest(PeerError("UNREACHABLE")) for _ in range(9)]
    assert rests == [10, 20, 40, 80, 160, 320, *[LONGEST_REST_SECONDS] * 3]
    assert (outbox.look().resting, outbox.look().failures) == (True, 9)
    assert destination_row(database).code == "UNREACHABLE"
    claimed = outbox.claim("a", 1)
    outbox.record("a", [Ended(claimed[0], "SERVER_ERROR")])
    assert outbox.look().failures == 9
    outbox.record("b", [Ended(each) for each in outbox.claim("b", 1)])
    assert (outbox.look().resting, outbox.look().failures) == (False, 0)
    assert destination_row(database).code is None


def test_another_result_speaks_for_the_film_now(database: Database, films: Films, make_outbox: Make) -> None:
    from worker.results.write import write_results

    first = films.film(stored=result())
    outbox = make_outbox(outputs=(OutputKind.REPORT,))
    outbox.fill()
    other = films.add_bundle("2")
    second = films.job(1, "done", arrival_id=films.arrival_of(first), bundle_id=other)
    with database.write() as connection:
        write_results(connection, [(second, result())])
        # It was read long ago, by a bundle on trial.
        then = datetime.now(UTC) - timedelta(days=3)
        connection.execute(update(tables.job).where(tables.job.c.id == second).values(finished_at=then))
        connection.execute(update(tables.bundle_alias).values(bundle_id=other))
    (claimed,) = outbox.claim("a", 9)
    assert claimed.superseded
    outbox.replace([claimed], "a")
    assert [(row.job_id, row.state, row.code) for row in rows(database)] == [
        (first, "abandoned", "SUPERSEDED"),
        (second, "ready", None),
    ]


# Destinations


def actions(films: Films) -> list[tuple[str, str]]:
    with films.database.read() as connection:
        found = connection.execute(tables.audit_event.select().order_by(tables.audit_event.c.id))
        return [(row.action, row.subject) for row in found]


def test_the_table_follows_the_file_and_says_who_changed_it(database: Database, films: Films) -> None:
    pacs, other = destination("pacs"), destination("other")
    ids = mirror(database, {"pacs": pacs, "other": other}, actor="me")
    assert mirror(database, {"pacs": pacs, "other": other}, actor="me") == ids
    mirror(database, {"pacs": destination("pacs", port=105), "other": other}, actor="me")
    assert destination_row(database).configuration["port"] == 105
    assert actions(films) == [
        ("add destination", "pacs"), ("add destination", "other"), ("change destination", "pacs"),
    ]  # fmt: skip


def test_what_waits_for_a_removed_destination_is_abandoned_and_a_new_beginning_is_one(
    database: Database, films: Films, make_outbox: Make
) -> None:
    films.film(stored=result())
    outbox = make_outbox()
    outbox.fill()
    outbox.record("a", [Ended(outbox.claim("a", 2)[0])])
    outbox.give_back("a")
    mirror(database, {}, actor="me")
    assert [(row.state, row.code) for row in rows(database)] == [
        ("sent", None),
        ("abandoned", "DESTINATION_REMOVED"),
    ]
    films.film(stored=result())
    (number,) = mirror(database, {"pacs": destination()}, actor="me").values()
    back = Outbox(database, number, destination(), backoff_seconds=1.0, lease_seconds=60.0)
    with database.write() as connection:
        then = datetime.now(UTC) - timedelta(seconds=30)
        connection.execute(update(tables.job).values(finished_at=then))
    assert back.fill() == 0
    films.film(stored=result())
    assert back.fill() == 2
    assert destination_row(database).removed_at is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"state": "leased"},
        {"lease_id": "a"},
        {"state": "leased", "lease_id": "a"},
        {"state": "delayed", "code": "X"},
        {"state": "failed"},
        {"state": "abandoned"},
        {"state": "sent"},
        {"state": "lost"},
        {"output": "fax"},
    ],
    ids=str,
)
def test_the_table_itself_refuses_what_cannot_be(
    database: Database, films: Films, make_outbox: Make, wrong: dict[str, str]
) -> None:
    films.film(stored=result())
    make_outbox().fill()
    with pytest.raises(IntegrityError), database.write() as connection:
        connection.execute(update(tables.delivery).values(**wrong))


def test_two_processes_that_start_together_know_one_destination(database: Database) -> None:
    ids: list[dict[str, int]] = []
    both = threading.Barrier(2)

    def start() -> None:
        both.wait(30)
        ids.append(mirror(database, {"pacs": destination()}, actor="me"))

    threads = [threading.Thread(target=start) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ids[0] == ids[1]
