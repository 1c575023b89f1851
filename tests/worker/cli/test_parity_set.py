"""``carina bundle parity-set``: add, show."""

from __future__ import annotations

import json
from pathlib import Path

import dicom_files
import pytest
from click.testing import CliRunner
from phantom_bundle import PHANTOM_BUNDLE

from schema.bundle import read_manifest
from worker.cli import main
from worker.inference.site_set import site_films


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CARINA_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def carina(*arguments: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["bundle", "parity-set", *map(str, arguments)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def test_films_are_added_once_and_counted(tmp_path: Path, home: Path) -> None:
    folder = tmp_path / "films"
    folder.mkdir()
    for seed in range(3):
        dicom_files.save(dicom_files.make_dataset(dicom_files.chest_pixels(seed=seed)), folder / f"{seed}.dcm")
    assert carina("add", folder)[0] == 0
    # A second network with the same preprocessing shares the pictures.
    for member in read_manifest(PHANTOM_BUNDLE).members:
        assert len(site_films(home, member)) == 3
    code, output = carina("add", folder, "--json")
    assert code == 0
    assert json.loads(output) == {"added": 0, "known": 3, "refused": []}
    told = json.loads(carina("show", "--json")[1])
    assert told["needed"] == 30
    assert {each["films"] for each in told["networks"]} == {3}
    assert "holste_unet: 3 films, 30 needed" in carina("show")[1]


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no film")
    code, output = carina("add", tmp_path / "notes.txt")
    assert code == 3
    assert "notes.txt: The file is not DICOM" in output
    assert "0 films added, 0 known already, 1 refused" in output


def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    code, output = carina("add", tmp_path / "nowhere")
    assert code == 1
    assert "There is no file or folder" in output
