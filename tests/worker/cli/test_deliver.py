from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from dicom_node import DicomNode
from read_films import ReadFilms
from sqlalchemy import select

from schema import tables
from worker.cli import main

FILE = """
[destination.pacs]
kind = "dicom"
host = "127.0.0.1"
port = {port}
ae_title = "PACS"
outputs = ["segmentation"]
"""


def carina(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, arguments)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


@pytest.fixture
def node() -> Iterator[DicomNode]:
    with DicomNode() as started:
        yield started


@pytest.fixture
def site(tmp_path: Path, node: DicomNode, monkeypatch: pytest.MonkeyPatch) -> Iterator[ReadFilms]:
    (tmp_path / "peers.toml").write_text(FILE.format(port=node.port))
    made = ReadFilms.at(tmp_path)
    monkeypatch.setenv("CARINA_HOME", str(made.settings.home))
    monkeypatch.setenv("CARINA_DELIVERY", str(tmp_path / "peers.toml"))
    yield made
    made.database.close()


def test_from_a_file_to_the_last_output(site: ReadFilms, node: DicomNode) -> None:
    assert carina("deliver", "status")[1].startswith("No destination is known yet")
    assert carina("deliver", "--once") == (
        0,
        f"pacs: segmentation to PACS at 127.0.0.1:{node.port}\npacs: 0 sent, 0 put off, 0 given up\n",
    )
    site.add(2)
    code, text = carina("deliver", "--once", "--json")
    assert (code, json.loads(text[text.index("{") :])["destinations"]["pacs"]["sent"]) == (0, 2)
    code, text = carina("deliver", "status", "--json")
    assert [(one["name"], one["counts"], one["open"]) for one in json.loads(text)] == [("pacs", {"sent": 2}, 0)]


def test_older_results_on_request(site: ReadFilms, node: DicomNode) -> None:
    site.add()
    carina("deliver", "--once")
    assert node.received == []
    assert carina("deliver", "--once", "--backfill", "2026-01-01")[0] == 0
    assert len(node.received) == 1


def test_what_is_left_is_exit_code_3_and_a_health_check_says_so(site: ReadFilms, node: DicomNode) -> None:
    carina("deliver", "--once")
    site.add()
    node.stop()
    code, text = carina("deliver", "--once")
    assert (code, "Something is left: carina deliver status" in text) == (3, True)
    code, text = carina("deliver", "status")
    words = " ".join(text.split())
    assert "cannot be" in words and "Tried again in" in words
    assert carina("deliver", "status", "--fail-if-waiting-longer", "3600")[0] == 0
    code, text = carina("deliver", "status", "--fail-if-waiting-longer", "0")
    assert (code, "Outputs have been waiting for too long: pacs." in text) == (1, True)


def test_dead_letters_and_sending_again(site: ReadFilms, node: DicomNode) -> None:
    carina("deliver", "--once")
    (job,) = site.add()
    node.status = lambda dataset: 0xC000
    assert carina("deliver", "--once")[0] == 3
    node.status = lambda dataset: 0
    assert carina("deliver", "resend", "--job", str(job + 1)) == (0, "0 outputs are ready to be sent again.\n")
    assert carina("deliver", "resend", "--destination", "pacs", "--since", "2026-01-01")[1].startswith("1 outputs")
    assert carina("deliver", "--once")[0] == 0
    assert carina("deliver", "resend", "--all", "--state", "sent")[1].startswith("1 outputs")
    with site.database.read() as connection:
        actions = connection.scalars(select(tables.audit_event.c.action).order_by(tables.audit_event.c.id)).all()
    assert actions == ["add destination", "resend", "resend"]


def test_asking_a_destination(site: ReadFilms, node: DicomNode) -> None:
    code, text = carina("deliver", "test", "pacs")
    assert (code, text.splitlines()[0]) == (0, "C-ECHO: status 0000H")
    node.stop()
    assert carina("deliver", "test", "pacs")[0] == 1


def test_wrong_usage(site: ReadFilms) -> None:
    assert carina("deliver", "resend")[0] == 2
    assert carina("deliver", "resend", "--all", "--job", "1")[0] == 2
    assert carina("deliver", "--once", "status")[0] == 2
    assert carina("deliver", "--destination", "nobody", "--once")[0] == 1


def test_without_a_file(site: ReadFilms, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CARINA_DELIVERY")
    code, text = carina("deliver", "--once")
    assert (code, "name it in CARINA_DELIVERY" in text) == (1, True)
