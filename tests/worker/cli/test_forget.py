from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from intake_rows import write_film

from worker.cli import main


@pytest.fixture
def films(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two films of patient 4711 and one of 4712, registered."""
    monkeypatch.setenv("CARINA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CARINA_DISK_RESERVE", "0")
    folder = tmp_path / "films"
    folder.mkdir()
    for number, patient in enumerate(("4711", "4711", "4712"), start=1):
        write_film(folder / f"{number}.dcm", f"2.25.{number}", PatientID=patient)
    assert carina("submit", str(folder))[0] == 0
    return folder


def carina(*words: str, typed: str | None = None) -> tuple[int, str]:
    result = CliRunner().invoke(main, words, input=typed)
    return result.exit_code, result.output


def test_it_deletes_and_says_what(films: Path) -> None:
    code, text = carina("forget", "4711", "--yes")
    assert code == 0 and "films: 2" in text and "files in submitted folders, left alone: 2" in text
    assert "4711" not in text and str(films) not in text
    assert len(list(films.iterdir())) == 3
    assert carina("forget", "4711", "--yes") == (0, "No film of this patient is known here.\n")


def test_a_dry_run_lists_files_only_if_asked(films: Path) -> None:
    code, text = carina("forget", "4711", "--dry-run", "--files")
    assert code == 0 and text.startswith("Would delete:") and str(films / "1.dcm") in text
    report = json.loads(carina("forget", "4711", "--dry-run", "--json")[1])
    assert report["rows"]["instance"] == 2 and report["dry_run"] is True and "elsewhere" not in report


def test_without_yes_nothing_happens_where_nobody_can_be_asked(films: Path) -> None:
    code, text = carina("forget", "4711")
    assert code == 1 and "--yes" in text
    assert "films: 2" in carina("forget", "4711", "--dry-run")[1]


def test_the_patient_may_come_from_standard_input(films: Path) -> None:
    code, text = carina("forget", "-", "--yes", typed="4712\n")
    assert code == 0 and "films: 1" in text


@pytest.mark.parametrize(
    "words", [("4711", "--key"), ("a" * 64, "--key", "--issuer", "x"), ("-",)], ids=["no key", "both", "nobody"]
)
def test_wrong_usage(films: Path, words: tuple[str, ...]) -> None:
    assert carina("forget", *words, typed="\n")[0] == 2


def test_a_pseudonymous_key_will_do(films: Path) -> None:
    from sqlalchemy import select

    from schema.database import Database
    from schema.tables import instance, instance_identity

    database = Database(f"sqlite:///{films.parent / 'home' / 'carina.sqlite'}")
    with database.read() as connection:
        named = select(instance_identity.c.instance_id).where(instance_identity.c.patient_id == "4712")
        key = connection.scalar(select(instance.c.patient_key).where(instance.c.id.in_(named)))
    database.close()
    code, text = carina("forget", str(key), "--key", "--yes")
    assert code == 0 and "films: 1" in text
