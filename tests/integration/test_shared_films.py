"""Real CR and DX files through the whole night.

The expected outcome of each file was written down before the first run. A file may have more
than one allowed outcome where two files hold the same film: which of them is read first is the
folder's order.
"""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

FILMS = Path(__file__).resolve().parents[2] / "../shared/data/dicom"
pytestmark = pytest.mark.skipif(not FILMS.is_dir(), reason="the shared radiographs are not here")

DONE = {"done"}
SAME_AS_ANOTHER = {"done", "duplicate", "alias"}
#: Not a frontal chest: anything but a clean "done" (see the test on flags).
OTHER = {"ineligible", "done", "failed", "alias"}

EXPECTED: dict[str, set[str]] = {
    # chests
    "Enet4__dicom-test-files__RG1_JLSN.dcm": DONE,
    "Spoksonat__Registration__cxr.dcm": DONE,
    "raiprabh__covid-chestxray-dataset__c64d5667-a776-4f95-9e21-bfabafb07740.dcm": DONE,
    "udacity__AIHCND_C2_Starter__test2.dcm": DONE,
    # one film under one UID with two polarities: the second one met is a conflict
    "mlmed__torchxrayvision__1.2.276.0.7230010.3.1.4.8323329.6904.1517875201.850819.dcm": {"done", "conflict"},
    "mlmed__torchxrayvision__Fake_MONOHR1.dcm": {"done", "conflict"},
    # one film under one UID as DX, as CT and as "RIBCAGE"
    "udacity__AIHCND_C2_Starter__test1.dcm": SAME_AS_ANOTHER,
    "udacity__AIHCND_C2_Starter__test5.dcm": SAME_AS_ANOTHER,
    "udacity__AIHCND_C2_Starter__test4.dcm": SAME_AS_ANOTHER,
    # one chest in seven encodings, four of them under one UID
    "ivmartel__dwv__gdcm-CR-MONO1-10-chest.dcm": SAME_AS_ANOTHER,
    "gdcm-chest_J2K_lossless.dcm": SAME_AS_ANOTHER,
    "gdcm-chest_JPEGLS_lossless.dcm": SAME_AS_ANOTHER,
    "gdcm-chest_RLE.dcm": SAME_AS_ANOTHER,
    "gdcm-chest_deflated.dcm": SAME_AS_ANOTHER,
    "gdcm-chest_explicitBE.dcm": SAME_AS_ANOTHER,
    "gdcm-chest_implicitLE.dcm": SAME_AS_ANOTHER,
    # not a frontal chest
    "Enet4__dicom-test-files__RG2_JLSL.dcm": OTHER,
    "Enet4__dicom-test-files__RG2_RLE.dcm": OTHER,
    "Enet4__dicom-test-files__RG3_JPLL.dcm": OTHER,
    "ImagingDataCommons__highdicom__dx_image.dcm": OTHER,
    "orthanc-mirrors__orthanc-tests__CR000000.dcm": {"failed"},
}
#: Exactly one file of each group is the film, the others are recognised as the same one.
GROUPS = [
    [name for name in EXPECTED if "gdcm" in name],
    [name for name in EXPECTED if "Starter__test" in name and "test2" not in name],
]
NOT_A_FRONTAL_CHEST = [name for name, outcome in EXPECTED.items() if outcome is OTHER]
FINDINGS = {"pneumonia", "no_finding"}


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    folder = tmp_path_factory.mktemp("night")
    environment = {**os.environ, "CARINA_HOME": str(folder / "home")}

    def carina(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "worker.cli", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250)

    night = carina("run", str(FILMS), "--report", str(folder / "report"))
    assert night.returncode == 3, night.stdout + night.stderr  # the object without pixel data fails
    assert (folder / "report" / "report.html").stat().st_size > 10_000
    table = carina("export", "--format", "csv", "--out", str(folder / "out"))
    assert table.returncode == 0, table.stderr
    with (folder / "out" / "films.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    names = [Path(row["source"]).name for row in rows]
    assert len(names) == len(set(names))
    masks = carina("export", "--format", "png", "--out", str(folder / "masks"))
    assert masks.returncode == 0, masks.stderr
    done = {row["sop_instance_uid"] for row in rows if row["state"] == "done"}
    assert {file.stem for file in (folder / "masks").glob("*.png")} == done
    return dict(zip(names, rows, strict=True))


def test_every_file_has_exactly_one_row(films: dict[str, dict[str, str]]) -> None:
    assert sorted(films) == sorted(EXPECTED)  # manifest.csv is not DICOM: counted, not a row


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_outcome_is_the_one_written_down(films: dict[str, dict[str, str]], name: str) -> None:
    row = films[name]
    assert row["state"] in EXPECTED[name], row
    if row["state"] in {"failed", "ineligible", "rejected"}:
        assert row["code"], row
    if row["state"] == "done":
        assert row["bundle"]
        assert all(0.0 <= float(row[finding]) <= 1.0 for finding in FINDINGS)


@pytest.mark.parametrize("group", GROUPS, ids=["one chest in seven encodings", "one film under three headers"])
def test_one_film_in_many_files_is_processed_once(films: dict[str, dict[str, str]], group: list[str]) -> None:
    states = [films[name]["state"] for name in group]
    assert states.count("done") == 1
    assert set(states) <= {"done", "duplicate", "alias"}


def test_two_polarities_under_one_uid_are_one_film_and_one_conflict(films: dict[str, dict[str, str]]) -> None:
    pair = [row["state"] for name, row in films.items() if name.startswith("mlmed")]
    assert sorted(pair) == ["conflict", "done"]


@pytest.mark.parametrize("name", NOT_A_FRONTAL_CHEST)
def test_what_is_not_a_frontal_chest_is_never_done_without_a_flag(films: dict[str, dict[str, str]], name: str) -> None:
    row = films[name]
    assert row["state"] != "done" or row["flags"], row


def test_the_object_without_pixels_says_so(films: dict[str, dict[str, str]]) -> None:
    assert films["orthanc-mirrors__orthanc-tests__CR000000.dcm"]["code"] == "NO_PIXEL_DATA"
