from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from intake_rows import write_film

from worker.cli import main

RULES = """
[[rule]]
name = "other parts"
decision = "skip"
reason = "only chests"
body_part = ["HAND", "KNEE"]

[[rule]]
name = "named"
decision = "skip"
reason = "a test"
description = "*secret*"
calling_ae = "ICU*"
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "rules.toml").write_text(RULES)
    monkeypatch.setenv("CARINA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CARINA_RULES", str(tmp_path / "rules.toml"))
    monkeypatch.setenv("CARINA_DISK_RESERVE", "0")
    return tmp_path


def carina(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, words)
    return result.exit_code, result.output


def test_check_lists_the_rules(site: Path) -> None:
    code, text = carina("rules", "check")
    assert code == 0
    assert text.splitlines() == [
        "1. other parts: skip by body_part (only chests)",
        "2. named: skip by description, calling_ae (a test)",
        "Otherwise: process",
    ]


def test_check_says_what_is_wrong_and_where(site: Path) -> None:
    (site / "wrong.toml").write_text('[[rule]]\nname = "a"\ndecision = "skipp"\n')
    code, text = carina("rules", "check", "--rules", str(site / "wrong.toml"))
    assert code == 1 and "line 3, rule 1" in text and "carina rules check" in text


def test_test_explains_what_decided(site: Path) -> None:
    hand = write_film(site / "hand.dcm", "2.25.1", BodyPartExamined="HAND")
    code, text = carina("rules", "test", str(hand))
    assert code == 0
    assert text.splitlines() == [
        f"{hand}: skip, decided by rule other parts: only chests",
        "  other parts: decides",
        "    body_part holds (HAND)",
    ]
    assert not (site / "home").exists()


def test_test_as_json_shows_no_description_and_no_identifier(site: Path) -> None:
    film = write_film(site / "film.dcm", "2.25.77", StudyDescription="Secret Meier", PatientID="P77")
    code, text = carina("rules", "test", str(film), "--json", "--calling-ae", "ICU1")
    (answer,) = json.loads(text)
    assert code == 0 and (answer["decision"], answer["decided_by"]) == ("skip", "rule named")
    assert {found["condition"]: (found["verdict"], found["value"]) for found in answer["asked"][1]["conditions"]} == {
        "description": ("holds", ""),
        "calling_ae": ("holds", "ICU1"),
    }
    assert not any(word in text for word in ("Meier", "P77", "2.25.77"))


def test_test_goes_on_after_a_file_that_cannot_be_read(site: Path) -> None:
    (site / "empty.dcm").touch()
    volume = write_film(site / "ct.dcm", "2.25.2", SOPClassUID="1.2.840.10008.5.1.4.1.1.2")
    code, text = carina("rules", "test", str(site / "empty.dcm"), str(volume))
    assert code == 3
    assert "no bytes" in text and "skip, decided by its header" in text


def test_submitting_follows_the_rules(site: Path) -> None:
    write_film(site / "a.dcm", "2.25.1", BodyPartExamined="HAND")
    write_film(site / "b.dcm", "2.25.2", BodyPartExamined="CHEST")
    code, text = carina("submit", str(site), "--json")
    report = json.loads(text)
    assert code == 0 and (report["registered"], report["ineligible"]) == (1, {"RULE_SKIPPED": 1})


def test_wrong_rules_register_nothing(site: Path) -> None:
    (site / "rules.toml").write_text("[[rule]]\n")
    write_film(site / "a.dcm", "2.25.1")
    code, text = carina("submit", str(site))
    assert code == 1 and "a rule needs a name" in text
