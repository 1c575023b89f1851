"""What David Clunie's dciodvfy says of every object, for real films and for phantoms."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from output_films import Site
from stored_films import result

from schema.outputs import OutputKind
from worker.phantom import make_phantom, phantom_dataset

VALIDATOR = shutil.which("dciodvfy")
FILMS = Path(__file__).resolve().parents[4] / "../shared/data/dicom"
CHESTS = sorted(path for folder in ("dev", "dev_derived") for path in (FILMS / folder).glob("*.dcm"))
PHANTOMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "mirrored": {"mirrored": True},
    "inverted": {"photometric": "MONOCHROME1", "padding": 20},
    "eight-bits": {"bits_stored": 8, "transfer_syntax": "1.2.840.10008.1.2.4.50"},
}
pytestmark = [
    pytest.mark.services,
    pytest.mark.skipif(VALIDATOR is None, reason="dciodvfy is not installed (Debian: dicom3tools)"),
]


def errors_of(site: Site, path: Path) -> dict[str, list[str]]:
    """Object → lines dciodvfy calls errors, of all objects with and without identity."""
    from pydicom import dcmread

    header = dcmread(path, stop_before_pixels=True)
    mirrored = str(header.get("PatientOrientation", ["L"])[0] if header.get("PatientOrientation") else "L") == "R"
    stored = result(film=(int(header.Rows), int(header.Columns)), flags=("missing_region",), flip_columns=mirrored)
    job = site.add(path, stored)
    found: dict[str, list[str]] = {}
    for identified in (True, False):
        for kind, datasets in site.build(job, list(OutputKind), identified=identified).items():
            assert datasets, kind
            for dataset in datasets:
                file = site.folder / "made.dcm"
                dataset.save_as(file, enforce_file_format=True)
                check = subprocess.run([str(VALIDATOR), str(file)], capture_output=True, text=True, errors="replace")
                lines = [line for line in check.stderr.splitlines() if line.startswith("Error")]
                if lines or check.returncode:
                    found[f"{kind} identified={identified}"] = lines or [f"exit code {check.returncode}"]
    return found


@pytest.mark.skipif(not CHESTS, reason="the shared radiographs are not here")
@pytest.mark.parametrize("path", CHESTS, ids=lambda path: path.stem[-40:])
def test_objects_of_real_films_have_no_error(site: Site, path: Path) -> None:
    assert errors_of(site, path) == {}


@pytest.mark.parametrize("name", PHANTOMS)
def test_objects_of_phantoms_have_no_error(site: Site, name: str) -> None:
    path = site.folder / "phantom.dcm"
    phantom_dataset(make_phantom(5, rows=300, columns=240), **PHANTOMS[name]).save_as(path)
    assert errors_of(site, path) == {}
