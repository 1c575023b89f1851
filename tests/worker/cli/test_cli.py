from __future__ import annotations

import json
import re
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from worker.cli import COMMANDS, main
from worker.phantom import make_phantom, phantom_dataset


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CARINA_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def film(tmp_path: Path) -> Path:
    folder = tmp_path / "films"
    folder.mkdir()
    phantom_dataset(make_phantom(3, rows=256, columns=224)).save_as(folder / "a.dcm")
    (folder / "README").write_text("hello")
    return folder


def carina(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, arguments)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def every_command() -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    context = click.Context(main)
    for name in COMMANDS:
        command = main.get_command(context, name)
        found.append((name,))
        if isinstance(command, click.Group):
            found += [(name, sub) for sub in command.commands]
    return found


@pytest.mark.parametrize("command", every_command(), ids=" ".join)
def test_help_has_an_example(command: tuple[str, ...]) -> None:
    code, text = carina(*command, "--help")
    assert code == 0
    assert re.search(rf"Example: carina {command[0]}", text), text


def test_top_help_says_what_it_is_not() -> None:
    code, text = carina("--help")
    assert code == 0
    assert "Research use, not a medical device" in " ".join(text.split())
    assert "solo" not in text


def test_wrong_usage_is_exit_code_2(tmp_path: Path) -> None:
    assert carina("run")[0] == 2
    assert carina("retry")[0] == 2
    assert carina("nonsense")[0] == 2
    assert carina("export", "--format", "bmp", "--out", str(tmp_path))[0] == 2


def test_what_a_person_can_mend_is_one_sentence_and_exit_code_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, text = carina("submit", str(tmp_path / "absent"))
    assert code == 1
    assert text.startswith("Error: ")
    assert "Traceback" not in text
    monkeypatch.setenv("CARINA_CLAIMSIZE", "3")
    code, text = carina("status")
    assert (code, "CARINA_CLAIM_SIZE" in text) == (1, True)


def test_a_database_that_was_not_prepared_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CARINA_DATABASE_URL", f"sqlite:///{tmp_path / 'own.sqlite'}")
    code, text = carina("status")
    assert code == 1
    assert "carina db upgrade" in text
    assert carina("db", "upgrade")[0] == 0
    assert carina("status")[0] == 0


def test_submit_dry_run_writes_nothing_and_submit_is_idempotent(film: Path) -> None:
    code, text = carina("submit", str(film), "--dry-run", "--json")
    assert code == 0, text
    assert json.loads(text)["registered"] == 1
    assert json.loads(carina("status", "--json")[1])["films"].get("ready", 0) == 0
    assert json.loads(carina("submit", str(film), "--json")[1])["registered"] == 1
    assert json.loads(carina("submit", str(film), "--json")[1])["registered"] == 0


def test_looking_at_an_empty_ledger(tmp_path: Path) -> None:
    assert carina("failed") == (0, "No film has failed.\n")
    assert carina("conflicts", "list") == (0, "No file is in conflict.\n")
    assert json.loads(carina("failed", "--json")[1]) == []
    assert carina("export", "--format", "csv", "--out", str(tmp_path / "out"))[0] == 0
    header = (tmp_path / "out" / "films.csv").read_text().splitlines()
    assert header[0].startswith("sop_instance_uid,source,state,code,bundle,flags")
    assert len(header) == 1


def test_info_and_doctor_answer_in_json() -> None:
    facts = json.loads(carina("info", "--json")[1])
    assert facts
    code, text = carina("doctor", "--json")
    checks = json.loads(text)
    assert code in {0, 1}
    assert {check["ok"] for check in checks} <= {"ok", "warn", "fail"}
    assert all(check["finding"] for check in checks)


def test_demo_refuses_a_folder_that_is_not_its_own(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    code, text = carina("demo", str(tmp_path / "mine"))
    assert code == 1
    assert "not empty" in text
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
