"""Which films a rebuild learns from; on SQLite and PostgreSQL."""

from __future__ import annotations

import zipfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update
from stored_films import Films, digest

from schema import tables
from schema.database import Database
from schema.keys import is_held_out
from schema.tables import LabelSource, LabelValue, RebuildState
from trainer.data.splits import split
from trainer.errors import DataError
from trainer.rebuild.films import all_films, choose_films, judging_films
from trainer.rebuild.folder import RebuildFolder, read_json
from trainer.rebuild.ledger import Rebuild
from trainer.recipe import SplitTable
from worker.monitor.labels import Label, latest_label, record_labels
from worker.settings import Settings

MakeRequest = Any
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
HELD_OUT = next(digest(f"held {i}") for i in range(100) if is_held_out(digest(f"held {i}")))


class Shelf:
    """Films in files, registered and read."""

    def __init__(self, database: Database, folder: Path) -> None:
        self.database, self.folder, self.films = database, folder, Films(database)
        folder.mkdir()

    def film(self, *, file: str = "", member: str = "", state: str = "done", **values: Any) -> int:
        number = self.films.count
        path = self.folder / (file or f"{number}.dcm")
        if not path.exists():
            path.write_bytes(b"film")
        values = {"patient_key": digest(f"patient {number}"), **values}
        instance = self.films.instance(**values)
        arrival = self.films.arrival("instance", instance, path=str(path)[1:], member=member, current=True)
        facts = path.stat()
        with self.database.write() as connection:
            place = {"size": facts.st_size, "modified_ns": facts.st_mtime_ns}
            connection.execute(update(tables.identity).where(tables.identity.c.arrival_id == arrival).values(**place))
        self.films.job(instance, state, arrival_id=arrival)
        return instance

    def label(self, film: int, value: LabelValue, finding: str = "pneumonia", reader: str = "r1") -> None:
        record_labels(self.database, [Label(film, finding, value, reader, LabelSource.RANDOM, NOON)])


@pytest.fixture
def shelf(database: Database, tmp_path: Path) -> Shelf:
    return Shelf(database, tmp_path / "films")


@pytest.fixture
def folder(tmp_path: Path) -> RebuildFolder:
    return RebuildFolder(tmp_path / "rebuild")


def row_of(database: Database, folder: RebuildFolder) -> Rebuild:
    """A rebuild that begins now."""
    with database.read() as connection:
        newest = latest_label(connection)
    return Rebuild(
        1, RebuildState.RUNNING, "films", 1, NOON, None, "tiny-findings", {}, folder.path, newest, "", "", "", {}
    )


@pytest.fixture
def choose(database: Database, settings: Settings, folder: RebuildFolder, ask: MakeRequest) -> Any:
    """Chooses films of the database, and returns them as a data set by key."""

    def chosen(**options: Any) -> Any:
        request = ask(**{"data": "", "from_database": True, **options})
        choose_films(database, settings, row_of(database, folder), request, folder)
        return all_films(database, settings, request, folder)

    return chosen


def findings_of(films: Any) -> list[dict[str, Any]]:
    return [dict(record.findings) for record in films.records]


def test_a_films_truth_is_what_its_readers_say(shelf: Shelf, choose: Any) -> None:
    film = shelf.film(age_days=400, sex="F")
    for reader, value in (("r1", LabelValue.PRESENT), ("r2", LabelValue.ABSENT), ("r3", LabelValue.PRESENT)):
        shelf.label(film, value, reader=reader)
    shelf.label(film, LabelValue.ABSENT, "bronchitis")
    shelf.label(film, LabelValue.UNCERTAIN, "other_opacity")
    (record,) = choose().records
    assert record.findings == {"pneumonia": True, "bronchitis": False, "other_opacity": None, "no_finding": False}
    assert (record.name, record.age_days, record.sex) == (digest("1.2.3.1"), 400, "F")
    assert record.image is not None and record.image.read_bytes() == b"film"


def test_nothing_is_found_where_something_is_present(shelf: Shelf, choose: Any) -> None:
    both, neither = shelf.film(), shelf.film()
    shelf.label(both, LabelValue.PRESENT)
    shelf.label(both, LabelValue.PRESENT, "no_finding")
    shelf.label(neither, LabelValue.PRESENT, "no_finding")
    assert findings_of(choose()) == [{"pneumonia": True, "no_finding": False}, {"no_finding": True}]


def test_what_cannot_be_learned_from_is_left_out_and_counted(shelf: Shelf, choose: Any, folder: RebuildFolder) -> None:
    good = shelf.film()
    unread, refused, changed, gone = (
        shelf.film(state="ready"),
        shelf.film(state="ineligible"),
        shelf.film(),
        shelf.film(),
    )
    for film in (good, unread, refused, changed, gone):
        shelf.label(film, LabelValue.PRESENT)
    shelf.film()  # has no label
    (shelf.folder / "3.dcm").write_bytes(b"something else")
    (shelf.folder / "4.dcm").unlink()
    films = choose()
    assert [record.name for record in films.records] == [digest("1.2.3.1")]
    assert films.origin["films"] == "1"
    assert {key: value for key, value in films.origin.items() if key.startswith("left out")} == {
        "left out: labelled, but not read by a worker": "2",
        "left out: labelled, but the file cannot be had (SOURCE_CHANGED)": "1",
        "left out: labelled, but the file cannot be had (SOURCE_MISSING)": "1",
    }
    assert str(shelf.folder) not in folder.films.read_text()


def test_nothing_to_learn_from_is_said(shelf: Shelf, choose: Any) -> None:
    with pytest.raises(DataError, match=r"there are no labels.*or give --data"):
        choose()
    shelf.label(shelf.film(state="failed"), LabelValue.PRESENT)
    with pytest.raises(DataError, match="1 labelled, but not read by a worker"):
        choose()


def test_the_choice_is_kept_whatever_comes_afterwards(
    shelf: Shelf, choose: Any, database: Database, settings: Settings, folder: RebuildFolder, ask: MakeRequest
) -> None:
    first, second = shelf.film(), shelf.film()
    shelf.label(first, LabelValue.PRESENT)
    row = row_of(database, folder)
    shelf.label(first, LabelValue.ABSENT, reader="later")
    shelf.label(second, LabelValue.PRESENT)
    request = ask(data="", from_database=True)
    choose_films(database, settings, row, request, folder)
    assert findings_of(all_films(database, settings, request, folder)) == [{"pneumonia": True, "no_finding": False}]
    written = folder.films.read_bytes()
    assert findings_of(choose()) == [{"pneumonia": True, "no_finding": False}]
    assert folder.films.read_bytes() == written


def test_a_chosen_film_that_vanished_is_named_by_its_key(shelf: Shelf, choose: Any) -> None:
    for _ in range(2):
        shelf.label(shelf.film(), LabelValue.PRESENT)
    choose()
    (shelf.folder / "1.dcm").unlink()
    with pytest.raises(DataError) as refusal:
        choose()
    assert f"{digest('1.2.3.2')} (SOURCE_MISSING)" in str(refusal.value) and "--fresh" in str(refusal.value)
    assert str(shelf.folder) not in str(refusal.value)


def test_no_film_of_a_held_out_patient_is_learned_from(shelf: Shelf, choose: Any) -> None:
    by_row, by_key = shelf.film(held_out=True), shelf.film(patient_key=HELD_OUT)
    sibling = shelf.film(patient_key=digest("patient 0"))
    alias_held_out = shelf.film()
    shelf.film(alias_of=alias_held_out, held_out=True)
    others = [shelf.film() for _ in range(8)]
    for film in (by_row, by_key, sibling, alias_held_out, *others):
        shelf.label(film, LabelValue.PRESENT)
    records = choose().records
    chosen = split(records, SplitTable(held_out=True))
    keys = {number: digest(f"1.2.3.{number}") for number in (1, 2, 3, 4)}
    assert {keys[1], keys[2], keys[3], keys[4]} <= {records[place].name for place in chosen.test}
    learned = {records[place].patient for part in ("train", "validation") for place in chosen.part(part)}
    assert learned and not {patient for patient in learned if is_held_out(patient)}


def test_labels_of_an_alias_count_for_the_film(shelf: Shelf, choose: Any) -> None:
    film = shelf.film()
    alias = shelf.film(alias_of=film)
    shelf.label(alias, LabelValue.PRESENT)
    shelf.label(film, LabelValue.PRESENT, "bronchitis")
    (record,) = choose().records
    assert record.name == digest("1.2.3.1")
    assert record.findings == {"pneumonia": True, "bronchitis": True, "no_finding": False}


def test_a_film_in_an_archive_is_unpacked(shelf: Shelf, choose: Any, folder: RebuildFolder) -> None:
    with zipfile.ZipFile(shelf.folder / "films.zip", "w") as archive:
        archive.writestr("night/a.dcm", b"inside")
    shelf.label(shelf.film(file="films.zip", member="night/a.dcm"), LabelValue.PRESENT)
    (record,) = choose().records
    assert record.image.read_bytes() == b"inside"
    assert record.image.parent == folder.unpacked
    folder.tidy()
    assert choose().records[0].image.is_file()


def test_films_of_the_database_and_of_a_data_set_together(shelf: Shelf, choose: Any) -> None:
    shelf.label(shelf.film(), LabelValue.PRESENT)
    films = choose(data="phantoms")
    assert (films.name, len(films.records), films.origin["films"]) == ("database and phantoms", 61, "61")


def test_thousands_of_films_are_asked_for_in_portions(
    shelf: Shelf, choose: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from worker.intake import lookups

    monkeypatch.setattr("trainer.rebuild.films.slices", lambda items: lookups.slices(items, 2))
    for _ in range(5):
        shelf.label(shelf.film(), LabelValue.PRESENT)
    assert len(choose().records) == 5


def test_both_bundles_are_judged_on_the_films_held_out_alone(
    settings: Settings, ask: MakeRequest, folder: RebuildFolder, sqlite_template: Path
) -> None:
    request = ask()
    everything = all_films(Database(f"sqlite:///{sqlite_template}"), settings, request, folder)
    films = judging_films(everything, request, ["phantom-000003", "phantom-000039", "phantom-000060"], folder.path)
    assert [(record.name, record.part) for record in films.records] == [
        ("phantom-000003", "test"), ("phantom-000039", "test"),
    ]  # fmt: skip
    # Phantoms that are drawn anew would be other films.
    assert len(films.for_recipe(request.recipe).records) <= 2


def test_films_json_can_be_read_by_a_person(shelf: Shelf, choose: Any, folder: RebuildFolder) -> None:
    film = shelf.film(held_out=True)
    shelf.label(film, LabelValue.PRESENT)
    choose()
    assert read_json(folder.films)["films"] == [
        {"id": film, "held_out": True, "findings": {"pneumonia": True, "no_finding": False}}
    ]
