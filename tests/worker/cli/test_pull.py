from __future__ import annotations

import json
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest
from click.testing import CliRunner
from dicom_files import chest_pixels, make_dataset
from web_archive import Answer, WebArchive, is_retrieval

from worker.cli import main


def carina(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, arguments)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def film(number: int) -> bytes:
    stream = BytesIO()
    dataset = make_dataset(chest_pixels(40, 30, seed=number), StudyDate="20260301", AccessionNumber=f"A{number}")
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WebArchive]:
    with WebArchive([film(1), film(2)]) as started:
        (tmp_path / "peers.toml").write_text(f'[source.archive]\nurl = "{started.url}"\n')
        monkeypatch.setenv("CARINA_HOME", str(tmp_path / "home"))
        monkeypatch.setenv("CARINA_DELIVERY", str(tmp_path / "peers.toml"))
        yield started


def test_a_day_a_list_and_what_was_there_already(archive: WebArchive, tmp_path: Path) -> None:
    (tmp_path / "list").write_text("A1\nA9\n")
    code, text = carina("pull", "--accessions", str(tmp_path / "list"))
    assert code == 0
    assert "1 films pulled" in text and "1 to process; 1 of 2 searches found nothing" in text
    code, text = carina("pull", "--since", "2026-03-01", "--lane", "icu", "--json")
    told = json.loads(text[text.index("{") :])
    assert (code, told["known"], told["pulled"], told["registered"], told["complete"]) == (0, 1, 1, 1, True)
    assert json.loads(carina("status", "--json")[1])["films"]["ready"] == 2


def test_films_that_could_not_be_had_are_exit_code_3(archive: WebArchive) -> None:
    archive.fault = lambda method, path: Answer(404) if is_retrieval(path) else None
    code, text = carina("pull", "--since", "2026-03-01", "--until", "2026-03-02")
    assert (code, "2 failed" in text) == (3, True)


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--since", "2026-03-01", "--accessions", "list"],
        ["--accessions", "list", "--until", "2026-03-01"],
        ["--since", "2026-03-02", "--until", "2026-03-01"],
        ["--since", "2026-03-01", "--between", "night"],
        ["--since", "2026-03-01", "--per-minute", "0"],
    ],
)
def test_wrong_usage(archive: WebArchive, words: list[str]) -> None:
    assert carina("pull", *words)[0] == 2


def test_which_source(archive: WebArchive, tmp_path: Path) -> None:
    code, text = carina("pull", "--since", "2026-03-01", "--from", "other")
    assert (code, "knows archive" in " ".join(text.split())) == (1, True)
    (tmp_path / "peers.toml").write_text("")
    code, text = carina("pull", "--since", "2026-03-01")
    assert (code, "[source.NAME]" in " ".join(text.split())) == (1, True)
