from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update
from stored_films import DIALECTS, Films, fresh_database

from schema import tables
from schema.database import Database
from schema.keys import uid_key
from schema.tables import LabelSource, LabelValue
from worker.errors import CarinaError
from worker.monitor.label_counts import count_labels, labels_of
from worker.monitor.label_files import CONVENTIONS, Defaults
from worker.monitor.label_import import CONSENSUS, ImportReport, import_labels
from worker.monitor.labels import ReaderPolicy, current_labels

KEY = bytes(32)
DEFAULTS = Defaults("r1", LabelSource.CONSECUTIVE)
Import = Callable[..., ImportReport]


@pytest.fixture(params=DIALECTS)
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    with fresh_database(request.param, tmp_path) as opened:
        yield opened


@pytest.fixture
def films(database: Database) -> Films:
    """Films 1.1 to 1.4; accession A1 is one film, A2 are two, A3 a film and its alias."""
    films = Films(database)
    for number, accession in enumerate(("A1", "A2", "A2", "A3"), start=1):
        film = films.instance(f"1.{number}", key=uid_key(KEY, f"1.{number}"))
        films.arrival("instance", film, path=f"night/film{number}.dcm", current=True)
        films_accession(database, film, accession)
    alias = films.instance("1.5", key=uid_key(KEY, "1.5"), alias_of=4)
    films_accession(database, alias, "A3")
    return films


def films_accession(database: Database, film: int, accession: str) -> None:
    identity = tables.instance_identity
    with database.write() as connection:
        connection.execute(update(identity).where(identity.c.instance_id == film).values(accession_number=accession))


@pytest.fixture
def bring(database: Database, films: Films, tmp_path: Path) -> Import:
    def run(rows: Sequence[Sequence[Any]] | Path, **options: Any) -> ImportReport:
        path = rows if isinstance(rows, Path) else table(tmp_path / "labels.csv", rows)
        convention = CONVENTIONS[options.pop("convention", "plain")]
        return import_labels(
            database, KEY, path, convention=convention, **{"defaults": DEFAULTS, "actor": "me", **options}
        )

    return run


def table(path: Path, rows: Sequence[Sequence[Any]], delimiter: str = ",") -> Path:
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream, delimiter=delimiter).writerows(rows)
    return path


def said(database: Database) -> dict[tuple[int, str, str], str]:
    with database.read() as connection:
        return {(item.instance_id, item.finding, item.reader): str(item.value) for item in current_labels(connection)}


WIDE = [["SOP Instance UID", "Pneumonia", "No finding"], ["1.1", 1, 0], ["1.2", 0, 1], ["1.3", -1, ""]]


def test_a_wide_table(database: Database, bring: Import) -> None:
    report = bring(WIDE)
    assert (report.rows, report.labels, report.new, report.blank, report.written) == (3, 5, 5, 1, True)
    assert said(database) == {
        (1, "pneumonia", "r1"): "present",
        (1, "no_finding", "r1"): "absent",
        (2, "pneumonia", "r1"): "absent",
        (2, "no_finding", "r1"): "present",
        (3, "pneumonia", "r1"): "uncertain",
    }
    with database.read() as connection:
        (event,) = connection.execute(select(tables.audit_event)).all()
    assert (event.actor, event.action, event.detail["new"]) == ("me", "labels import", 5)
    assert "1.1" not in str(event)


def test_importing_again_adds_nothing_and_a_changed_file_corrects(database: Database, bring: Import) -> None:
    bring(WIDE)
    assert bring(WIDE).new == 0
    report = bring([WIDE[0], ["1.1", 0, 1], *WIDE[2:]])
    assert report.new == 2 and said(database)[1, "pneumonia", "r1"] == "absent"
    with database.read() as connection:
        history = labels_of(connection, KEY, "1.1")
        assert history == labels_of(connection, KEY, uid_key(KEY, "1.1"))
        with pytest.raises(CarinaError, match="No film of this SOP Instance UID"):
            labels_of(connection, KEY, "9.9")
    assert [str(item.value) for item in history if item.finding == "pneumonia"] == ["present", "absent"]


def test_a_long_table_with_readers_sources_and_times(database: Database, bring: Import) -> None:
    rows = [
        ["instance_key", "finding", "value", "reader", "source", "labelled_at"],
        [uid_key(KEY, "1.1").upper(), "Other opacity", "present", "r1", "random", "2026-03-01T08:00:00+01:00"],
        [uid_key(KEY, "1.1"), "other_opacity", "absent", "r2", "disagreement", "2026-03-01 07:30"],
    ]
    assert bring(rows, defaults=Defaults()).new == 2
    assert bring(rows, defaults=Defaults()).new == 0
    with database.read() as connection:
        first, second = current_labels(connection)
        counts = count_labels(connection, ReaderPolicy.MAJORITY)
    assert (first.labelled_at, first.source) == (datetime(2026, 3, 1, 7, tzinfo=UTC), LabelSource.RANDOM)
    assert (second.labelled_at, second.reader, second.value) == (
        datetime(2026, 3, 1, 7, 30, tzinfo=UTC), "r2", LabelValue.ABSENT,
    )  # fmt: skip
    (finding,) = counts.findings
    assert (counts.films, counts.readers, counts.sources) == (1, {"r1": 1, "r2": 1}, {"random": 1, "disagreement": 1})
    assert (finding.uncertain, finding.present, finding.counting) == (1, 0, 1)


@pytest.mark.parametrize(("suffix", "delimiter"), [("csv", ";"), ("tsv", "\t")])
def test_other_separators(bring: Import, tmp_path: Path, suffix: str, delimiter: str) -> None:
    assert bring(table(tmp_path / f"x.{suffix}", WIDE, delimiter)).new == 5


def test_parquet(database: Database, bring: Import, tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    columns = {
        "sop_instance_uid": ["1.1", "1.2", "1.3"],
        "pneumonia": [1.0, None, -1.0],
        "bronchitis": [True, False, None],
        "labelled_at": [datetime(2026, 3, 1, 7, tzinfo=UTC)] * 3,
    }
    parquet.write_table(arrow.table(columns), tmp_path / "x.parquet")
    assert bring(tmp_path / "x.parquet").new == 4
    found = said(database)
    assert found[1, "bronchitis", "r1"] == "present" and found[3, "pneumonia", "r1"] == "uncertain"
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(CarinaError, match="not a Parquet file"):
        bring(tmp_path / "bad.parquet")


def test_accession_numbers_that_name_one_film(database: Database, bring: Import) -> None:
    rows = [["accession_number", "pneumonia"], ["A1", 1], ["A2", 1], ["A3", 0], ["A9", 1]]
    report = bring(rows)
    assert [(each.line, each.what) for each in report.problems] == [
        (3, "the accession number names more than one film")
    ]
    assert (report.written, report.unknown_films, report.unknown_lines) == (False, 1, [5])
    assert said(database) == {}
    assert bring(rows, skip_bad=True).new == 2
    assert said(database) == {(1, "pneumonia", "r1"): "present", (4, "pneumonia", "r1"): "absent"}


def test_file_names(database: Database, bring: Import) -> None:
    assert bring([["file_name", "pneumonia"], ["film1.dcm", 1], ["film2", 0], ["film2.png", 0]]).new == 2
    assert said(database) == {(1, "pneumonia", "r1"): "present", (2, "pneumonia", "r1"): "absent"}


def test_unknown_films_are_told_and_hinder_nothing(bring: Import) -> None:
    report = bring([*WIDE, ["9.9", 1, 0], ["9.9", 1, 0], ["9.8", "", 1]])
    assert (report.unknown_films, report.unknown_lines, report.new, report.written) == (2, [5, 6, 7], 5, True)
    assert "9.9" not in str(report.to_json())


@pytest.mark.parametrize(
    ("row", "what"),
    [
        (["1.1", "2", ""], "pneumonia is neither 1, 0, -1 nor empty"),
        (["1.1", "1"], "2 cells where the header has 3"),
        (["", "1", "0"], "the SOP Instance UID is empty"),
        (["1.1", "0", ""], "pneumonia: line 2 says otherwise"),
    ],
)
def test_a_wrong_line_keeps_all_out(database: Database, bring: Import, row: list[str], what: str) -> None:
    report = bring([*WIDE[:2], row, WIDE[2]])
    assert [(each.line, each.what) for each in report.problems] == [(3, what)]
    assert not report.written and said(database) == {}
    assert bring([*WIDE[:2], row, WIDE[2]], skip_bad=True).new == 4


@pytest.mark.parametrize(
    ("cells", "what"),
    [
        (["1.1", "pneumonai", "1", "", "", ""], "unknown finding; did you mean 'pneumonia'?"),
        (["1.1", "pneumonia", "1", "x" * 65, "", ""], "a reader needs a pseudonym of 1 to 64 characters"),
        (
            ["1.1", "pneumonia", "1", "", "nowhere", ""],
            "the source is none of consecutive, random, disagreement, other",
        ),
        (["1.1", "pneumonia", "1", "", "", "yesterday"], "the time is not written as 2026-03-01T07:30:00+00:00"),
        (["1.1", "pneumonia", "1", "", "", "2999-01-01"], "the time lies in the future"),
    ],
)
def test_what_a_long_line_can_have_wrong(bring: Import, cells: list[str], what: str) -> None:
    report = bring([["sop_instance_uid", "finding", "value", "reader", "source", "time"], cells])
    assert [(each.line, each.what) for each in report.problems] == [(2, what)]


@pytest.mark.parametrize(
    ("header", "defaults", "what"),
    [
        (["uid", "pneumonia"], DEFAULTS, "no column that names films"),
        (["image_id", "lungs"], DEFAULTS, "no column of a finding"),
        (["image_id", "finding"], DEFAULTS, "none called value"),
        (["image_id", "pneumonia"], Defaults(source=LabelSource.RANDOM), "give --reader"),
        (["image_id", "pneumonia"], Defaults(reader="r1"), "give --source"),
        (["image_id", "pneumonia", "Pneumonia"], DEFAULTS, "more than one column of pneumonia"),
    ],
)
def test_a_file_without_what_every_label_needs(bring: Import, header: list[str], defaults: Defaults, what: str) -> None:
    with pytest.raises(CarinaError, match=what):
        bring([header], defaults=defaults)


def test_a_misspelt_column_is_no_column_to_ignore(bring: Import) -> None:
    report = bring([["sop_instance_uid", "pneumonia", "bronchitus", "comment"], ["1.1", 1, 1, "x"]])
    assert [(each.line, each.what) for each in report.problems] == [
        (1, "column 'bronchitus' is no finding; did you mean 'bronchitis'?")
    ]
    assert report.ignored == ("bronchitus", "comment")


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b'sop_instance_uid,pneumonia\n1.1,"1\n'])
def test_files_that_are_no_tables(bring: Import, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.csv").write_bytes(content)
    with pytest.raises(CarinaError, match=r"x\.csv"):
        bring(tmp_path / "x.csv")


def test_a_dry_run_counts_and_writes_nothing(database: Database, bring: Import) -> None:
    report = bring(WIDE, dry_run=True)
    assert (report.labels, report.new, report.written) == (5, 5, False)
    assert said(database) == {}


def test_chexpert_calls_absent_what_a_report_does_not_mention(database: Database, bring: Import) -> None:
    rows = [["sop_instance_uid", "Sex", "Pneumonia", "Pleural Effusion", "Edema"], ["1.1", "F", "1.0", "", "-1.0"]]
    report = bring(rows, convention="chexpert")
    assert (report.new, report.ignored) == (3, ("Sex",))
    found = {finding: value for (_, finding, _), value in said(database).items()}
    assert found == {"pneumonia": "present", "pleural_effusion": "absent", "edema": "uncertain"}


def test_vindr_has_two_tables_and_a_misspelling(database: Database, bring: Import, tmp_path: Path) -> None:
    rows = [
        ["image_id", "rad_ID", "No finding", "Brocho-pneumonia", "Situs inversus"],
        ["film1", "R1", "0.0", "1.0", "0.0"],
        ["film2", "R2", "1.0", "0.0", "0.0"],
    ]
    marks = [
        ["image_id", "rad_ID", "class_name", "x_min"],
        ["film1", "R1", "Other opacity", "10"],
        ["film1", "R1", "Other opacity", "90"],
        ["film1", "R1", "Pulmonary fibrosis", "5"],
    ]
    options = {"convention": "vindr", "defaults": Defaults(source=LabelSource.RANDOM)}
    report = bring(rows, marks=table(tmp_path / "marks.csv", marks), **options)
    assert (report.new, report.others, report.ignored) == (12, 1, ("Situs inversus",))
    found = said(database)
    assert found[1, "bronchopneumonia", "R1"] == "present" and found[1, "other_opacity", "R1"] == "present"
    assert found[1, "bronchial_thickening", "R1"] == "absent" and found[2, "other_opacity", "R2"] == "absent"
    stranger = table(tmp_path / "more.csv", [*marks, ["film2", "R1", "Other opacity", "1"]])
    report = bring(rows, marks=stranger, **options)
    assert [(each.line, each.what) for each in report.problems] == [
        (5, "of the marks: the labels have no row of this film and reader")
    ]


def test_readers_of_a_file_taken_together(database: Database, bring: Import) -> None:
    rows = [["sop_instance_uid", "reader", "pneumonia"], ["1.1", "a", 1], ["1.1", "b", 1], ["1.1", "c", 0]]
    assert bring(rows, policy=ReaderPolicy.MAJORITY, defaults=Defaults(source=LabelSource.RANDOM)).new == 1
    assert said(database) == {(1, "pneumonia", CONSENSUS): "present"}


def test_an_old_file_that_comes_late_changes_nothing(database: Database, bring: Import) -> None:
    now = datetime.now(UTC)
    bring([WIDE[0], ["1.1", 0, 1]])
    bring([WIDE[0], ["1.1", 1, 0]], defaults=Defaults("r1", LabelSource.RANDOM, now - timedelta(days=3)))
    assert said(database)[1, "pneumonia", "r1"] == "absent"
