from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from output_films import Site, output_site

from worker.cli import EXIT_FAILED_FILMS, main

for module in ("highdicom", "nibabel", "pyarrow"):
    pytest.importorskip(module, reason="the extras pacs and research are not installed")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    with output_site(tmp_path) as opened:
        monkeypatch.setenv("CARINA_HOME", str(opened.settings.home))
        yield opened


def carina(*arguments: str | Path) -> tuple[int, str]:
    outcome = CliRunner().invoke(main, [str(argument) for argument in ("export", *arguments)])
    if outcome.exception and not isinstance(outcome.exception, SystemExit):
        raise outcome.exception
    return outcome.exit_code, outcome.output


def test_every_format_writes_and_says_how_much(site: Site, tmp_path: Path) -> None:
    site.film()
    said = {}
    for form in ("png", "csv", "dicom", "nifti", "parquet", "json"):
        code, said[form] = carina("--format", form, "--out", tmp_path / form)
        assert code == 0, said[form]
    assert said["png"].startswith("1 label maps written")
    assert said["dicom"].startswith("2 DICOM files written")
    assert said["json"].startswith("1 films written")
    assert {path.name for path in (tmp_path / "parquet").iterdir()} == {
        "films.parquet", "findings.parquet", "regions.parquet", "flags.parquet",
    }  # fmt: skip


def test_identity_is_asked_for_and_said(site: Site, tmp_path: Path) -> None:
    site.film(SOPInstanceUID="1.2.3.4")
    carina("--format", "json", "--out", tmp_path / "a")
    assert "sop_instance_uid" not in json.loads((tmp_path / "a" / "films.jsonl").read_text())
    code, text = carina("--format", "json", "--out", tmp_path / "b", "--with-identity")
    assert code == 0
    assert "audit_event" in text
    assert json.loads((tmp_path / "b" / "films.jsonl").read_text())["sop_instance_uid"] == "1.2.3.4"


def test_the_wrong_site_key_gives_no_identity(site: Site, tmp_path: Path) -> None:
    site.film()
    (site.settings.home / "site.key").write_text("cd" * 32)
    code, text = carina("--format", "json", "--out", tmp_path / "out", "--with-identity")
    assert code == 1
    assert "site key" in text
    assert not (tmp_path / "out").exists()


def test_pictures_come_with_a_warning(site: Site, tmp_path: Path) -> None:
    site.film()
    code, text = carina("--format", "dicom", "--out", tmp_path / "out", "--outputs", "overlay,heatmap")
    assert code == 0
    assert "burnt into" in text
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_a_film_that_is_gone_makes_it_exit_code_3(site: Site, tmp_path: Path) -> None:
    site.film()
    (site.folder / "film.dcm").unlink()
    code, text = carina("--format", "dicom", "--out", tmp_path / "out")
    assert code == EXIT_FAILED_FILMS
    assert "1 films left out" in text


@pytest.mark.parametrize(
    "arguments",
    [
        ("--format", "png", "--with-identity"),
        ("--format", "csv", "--keep-age-and-sex"),
        ("--format", "json", "--outputs", "report"),
        ("--format", "dicom", "--outputs", "report,film"),
    ],
    ids=" ".join,
)
def test_what_does_not_go_together_is_wrong_usage(site: Site, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    code, text = carina(*arguments, "--out", tmp_path / "out")
    assert code == 2
    assert "Traceback" not in text
    assert not (tmp_path / "out").exists()
