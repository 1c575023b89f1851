"""How fast are files registered, and does memory stay flat?

    python benchmarks/scan.py                      # 2,000 files, side by side with bare pydicom
    python benchmarks/scan.py --files 100000       # memory at 10,000, 50,000 and 100,000 files
    python benchmarks/scan.py --profile scan.prof  # where the time goes

Bare reading is ``pydicom.dcmread(stop_before_pixels=True)`` of every file in a loop; full
registration is walking, reading, checking, and committing to a fresh SQLite database. Both
see the same files, with warm caches, in turns. Target: registration at no less than 0.6 of
bare reading.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import psutil
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from schema.database import Database
from worker.intake.scan import SubmissionReport, submit
from worker.settings import Settings

TARGET = 0.6
FILES_IN_A_FOLDER = 1000
MEMORY_MARKS = (10_000, 50_000, 100_000)


def make_films(folder: Path, count: int) -> None:
    """Write ``count`` films with the header of a usual digital radiograph and 64 × 64 pixels."""
    template, marker = _template(), b"2.25." + b"9" * 33
    data = template.read()
    for number in range(count):
        place = folder / f"{number // FILES_IN_A_FOLDER:05d}"
        if number % FILES_IN_A_FOLDER == 0:
            place.mkdir()
        uid = b"2.25." + str(10**32 + number).encode()
        (place / f"{number:08d}.dcm").write_bytes(data.replace(marker, uid))


def _template() -> BytesIO:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    values = {
        "SpecificCharacterSet": "ISO_IR 100",
        "ImageType": ["ORIGINAL", "PRIMARY", ""],
        "SOPClassUID": "1.2.840.10008.5.1.4.1.1.1.1",
        "SOPInstanceUID": "2.25." + "9" * 33,
        "StudyDate": "20260301",
        "SeriesDate": "20260301",
        "AcquisitionDate": "20260301",
        "ContentDate": "20260301",
        "StudyTime": "101500",
        "AccessionNumber": "A123456",
        "Modality": "DX",
        "PresentationIntentType": "FOR PRESENTATION",
        "Manufacturer": "Maker",
        "InstitutionName": "Hospital",
        "StationName": "ROOM1",
        "StudyDescription": "Chest",
        "SeriesDescription": "Chest PA",
        "ManufacturerModelName": "Model",
        "PatientName": "Test^Film",
        "PatientID": "P1234567",
        "PatientBirthDate": "20200301",
        "PatientSex": "F",
        "PatientAge": "006Y",
        "BodyPartExamined": "CHEST",
        "KVP": "70",
        "DeviceSerialNumber": "1234",
        "SoftwareVersions": "1.0",
        "ViewPosition": "PA",
        "StudyInstanceUID": "2.25.10",
        "SeriesInstanceUID": "2.25.100",
        "StudyID": "1",
        "SeriesNumber": "1",
        "InstanceNumber": "1",
        "PatientOrientation": ["L", "F"],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": 64,
        "Columns": 64,
        "ImagerPixelSpacing": ["0.143", "0.143"],
        "BitsAllocated": 16,
        "BitsStored": 12,
        "HighBit": 11,
        "PixelRepresentation": 0,
        "WindowCenter": "2048",
        "WindowWidth": "4096",
        "RescaleIntercept": "0",
        "RescaleSlope": "1",
        "LossyImageCompression": "00",
        "PixelData": np.zeros((64, 64), "<u2").tobytes(),
    }
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    stream = BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    stream.seek(0)
    return stream


def bare_seconds(folder: Path) -> float:
    started = time.perf_counter()
    for path in folder.rglob("*.dcm"):
        pydicom.dcmread(path, stop_before_pixels=True)
    return time.perf_counter() - started


def registration_seconds(folder: Path, scratch: Path, profile: cProfile.Profile | None = None) -> float:
    with tempfile.TemporaryDirectory(dir=scratch) as home:
        settings = Settings(home=Path(home), disk_reserve=0)
        database = Database(settings.url)
        database.upgrade()
        started = time.perf_counter()
        if profile is not None:
            profile.enable()
        report = submit(database, settings, [folder])
        if profile is not None:
            profile.disable()
        seconds = time.perf_counter() - started
        assert report.counts.registered == report.files_seen > 0
        database.close()
    return seconds


def memory(folder: Path, scratch: Path) -> dict[str, float]:
    """Films → resident MiB of this process when so many were registered."""
    process, marks, peak = psutil.Process(), {}, 0.0
    with tempfile.TemporaryDirectory(dir=scratch) as home:
        settings = replace(Settings(), home=Path(home), disk_reserve=0, backlog_high=10**9)
        database = Database(settings.url)
        database.upgrade()

        def look(report: SubmissionReport) -> None:
            nonlocal peak
            peak = max(peak, process.memory_info().rss / 2**20)
            for mark in MEMORY_MARKS:
                if report.files_seen >= mark:
                    marks.setdefault(str(mark), round(peak, 1))

        submit(database, settings, [folder], progress=look)
        marks["end"] = round(peak, 1)
        database.close()
    return marks


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--directory", type=Path, help="where to put the files; default: the temporary folder")
    parser.add_argument("--profile", type=Path, help="write a cProfile of one registration there")
    parser.add_argument("--memory-only", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    scratch = arguments.directory or Path(tempfile.gettempdir())
    if arguments.memory_only:
        print(json.dumps(memory(arguments.memory_only, scratch)))
        return 0
    with tempfile.TemporaryDirectory(dir=scratch, prefix="scan-") as name:
        folder = Path(name)
        make_films(folder, arguments.files)
        # In a process of its own, so that nothing but registration counts.
        command = [sys.executable, __file__, "--memory-only", name, "--directory", str(scratch)]
        marks = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        pairs = [(bare_seconds(folder), registration_seconds(folder, scratch)) for _ in range(arguments.rounds)]
        if arguments.profile:
            profile = cProfile.Profile()
            registration_seconds(folder, scratch, profile)
            profile.dump_stats(arguments.profile)
    bare, full = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = bare / full
    print(f"bare pydicom    {arguments.files / bare:8.0f} films/s")
    print(f"registration    {arguments.files / full:8.0f} films/s")
    print(f"ratio           {ratio:8.2f}  (target {TARGET}: {'met' if ratio >= TARGET else 'missed'})")
    print("peak memory     " + ", ".join(f"{mark}: {size} MiB" for mark, size in marks.items()))
    return 0 if ratio >= TARGET else 1


if __name__ == "__main__":
    sys.exit(main())
