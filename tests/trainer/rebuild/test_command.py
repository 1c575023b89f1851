"""``carina rebuild`` from the command line."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import select
from tiny_recipes import FINDINGS, write_recipe

import worker.cli
from schema import tables
from schema.database import Database
from schema.keys import is_held_out, patient_key
from schema.tables import LabelSource, LabelValue
from trainer.commands import rebuild as command
from worker.cli import main
from worker.monitor.labels import Label, record_labels
from worker.phantom import make_phantom, phantom_dataset
from worker.settings import Settings

POINTS = [EntryPoint("rebuild", "trainer.commands.rebuild:rebuild", worker.cli.GROUP)]
READ_AT = datetime(2026, 3, 1, tzinfo=UTC)


@pytest.fixture(autouse=True)
def _joined(monkeypatch: pytest.MonkeyPatch, settings: Settings) -> None:
    """As an installed package says it; and the process that tests does not give way."""
    monkeypatch.setattr(worker.cli, "entry_points", lambda group: POINTS)
    monkeypatch.setattr(command, "_give_way", lambda threads: None)
    monkeypatch.setenv("CARINA_HOME", str(settings.home))
    monkeypatch.setenv("CARINA_DISK_RESERVE", "0")


def carina(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "RECIPE and --from-database, --data or both"),
        (("carina-findings",), "RECIPE and --from-database, --data or both"),
        (("carina-findings", "--from-database", "--layout", "vindr_pcxr"), "--layout is for --data"),
        (("carina-findings", "--data", "phantoms", "--watch"), "goes with --from-database"),
        (("carina-findings", "--from-database", "--watch", "--fresh"), "--fresh, --out and --json do not go with it"),
        (("carina-findings", "--from-database", "--watch", "--every", "weekly"), "no time: write for instance"),
        (("carina-findings", "--from-database", "--watch", "--every", "0d"), "no time: write for instance"),
        (("carina-findings", "--from-database", "--readers", "loudest"), "'loudest' is not one of"),
    ],
)
def test_wrong_usage(arguments: tuple[str, ...], said: str) -> None:
    result = carina("rebuild", *arguments)
    assert result.exit_code == 2
    assert said in " ".join(result.output.split())


@pytest.mark.parametrize(("text", "seconds"), [("90min", 5400), ("12h", 43_200), ("7d", 604_800), ("1.5 h", 5400)])
def test_times_are_read_as_people_write_them(text: str, seconds: float) -> None:
    assert command._as_seconds(None, None, text) == seconds  # type: ignore[arg-type]


def test_help_has_examples_and_says_who_promotes() -> None:
    said = " ".join(carina("rebuild", "--help").output.split())
    assert "Example: carina rebuild carina-findings --from-database" in said
    assert "carina bundle promote" in said


def test_what_cannot_be_is_one_sentence() -> None:
    result = carina("rebuild", "carina-regions", "--from-database")
    assert result.exit_code == 1
    assert "no corrected label maps in this version" in " ".join(result.output.split())
    result = carina("rebuild", "carina-findings", "--from-database")
    assert result.exit_code == 1 and "there are no labels" in " ".join(result.output.split())
    (row,) = json.loads(carina("rebuild", "--list", "--json").output)
    assert row["state"] == "failed" and "there are no labels" in row["outcome"]
    assert "there are no labels" in " ".join(carina("rebuild", "--list").output.split())


def test_list_of_nothing() -> None:
    assert carina("rebuild", "--list").output == "Nothing was rebuilt yet.\n"
    assert json.loads(carina("rebuild", "--list", "--json").output) == []


def test_stopped_by_a_person_it_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "_rebuild", stop)
    result = carina(
        "rebuild", "carina-findings", "--from-database", "--readers", "any", "--data", str(tmp_path / "my films"),
        "--layout", "chexpert", "--int8", "--out", str(tmp_path / "out"),
    )  # fmt: skip
    assert result.exit_code == 1
    again = (
        f"carina rebuild carina-findings --from-database --readers any --data '{tmp_path}/my films' "
        f"--layout chexpert --int8 --out {tmp_path}/out"
    )
    assert again in " ".join(result.output.split())


def test_from_a_nights_films_and_their_labels_to_a_candidate(tmp_path: Path, settings: Settings) -> None:
    films = tmp_path / "films"
    ill = write_films(films, bytes.fromhex("5a" * 32))
    assert carina("run", str(films)).exit_code == 0
    label_films(settings, ill)
    recipe = write_recipe(tmp_path, "tiny-findings", FINDINGS)
    result = carina("rebuild", str(recipe), "--from-database", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    parts = report["films"]["tiny-findings"]
    assert parts["test"] == 6 and parts["train"] + parts["validation"] == 14
    assert report["data"]["tiny-findings"]["truth"] == "labels of readers, majority"
    assert report["comparison"]["films"] == {"findings": 6}
    assert (
        "The masks were not compared: the candidate has the champion's own segmentation network."
        in (report["comparison"]["remarks"])
    )
    (row,) = json.loads(carina("rebuild", "--list", "--json").output)
    assert (row["state"], row["bundle"]) == ("finished", report["bundle"])
    assert report["bundle"] in " ".join(carina("rebuild", "--list").output.split())
    named = [path for path in Path(report["folder"]).rglob("*.md") if "PHANTOM" in path.read_text()]
    assert named == []


def write_films(folder: Path, site_key: bytes) -> set[str]:
    """Twenty films of as many children, six of them held out; returns the UIDs of those with pneumonia."""
    folder.mkdir()
    wanted, ill, seed = {True: 6, False: 14}, set(), 0
    while sum(wanted.values()):
        seed += 1
        held_out = is_held_out(patient_key(site_key, "", f"PHANTOM-{seed}", otherwise=""))
        if not wanted[held_out]:
            continue
        wanted[held_out] -= 1
        pneumonia = wanted[held_out] % 2 == 0
        dataset = phantom_dataset(make_phantom(seed, rows=256, columns=224, age_days=900, pneumonia=pneumonia))
        dataset.save_as(folder / f"{seed}.dcm")
        if pneumonia:
            ill.add(str(dataset.SOPInstanceUID))
    return ill


def label_films(settings: Settings, ill: set[str]) -> None:
    """What two readers say of every film; a third is wrong each time."""
    database = Database(settings.url)
    try:
        with database.read() as connection:
            identity = tables.instance_identity
            known = connection.execute(select(identity.c.instance_id, identity.c.sop_instance_uid)).all()
        labels = []
        for film, uid in known:
            for reader in ("r1", "r2", "r3"):
                present = (uid in ill) != (reader == "r3")
                for finding, said in (("pneumonia", present), ("no_finding", not present)):
                    value = LabelValue.PRESENT if said else LabelValue.ABSENT
                    labels.append(Label(film, finding, value, reader, LabelSource.CONSECUTIVE, READ_AT))
        assert record_labels(database, labels) == 20 * 3 * 2
    finally:
        database.close()
