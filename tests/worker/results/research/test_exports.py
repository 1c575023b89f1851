"""Files for research: what is in them, and that nothing in them says who it is."""

from __future__ import annotations

import gzip
import json
import logging
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pyarrow.parquet
import pydicom
import pytest
from output_films import Site, without
from sqlalchemy import select
from stored_films import labels, result

from schema import tables
from schema.outputs import OutputKind
from worker.errors import CarinaError
from worker.film.geometry import to_film_grid
from worker.film.prepared import Geometry
from worker.results.outputs.objects import Naming
from worker.results.research import parquet
from worker.results.research.dicom import export_dicom
from worker.results.research.documents import export_json
from worker.results.research.films import allow_identity
from worker.results.research.nifti import affine_of, export_nifti, nifti_bytes
from worker.results.research.parquet import export_parquet

HIDDEN, NAMED = Naming(identified=False), Naming()
STRUCTURED = (OutputKind.SEGMENTATION, OutputKind.REPORT)
IDENTITY = {
    "sop_instance_uid": "1.2.826.0.1.777.3",
    "study_instance_uid": "1.2.826.0.1.777.1",
    "patient_id": "MRN-998877",
    "accession_number": "ACC-554433",
    "study_date": "2024-05-11",
}


def film(site: Site, name: str = "film.dcm", **more: Any) -> int:
    """A film whose identity is in the file and in the database."""
    job = site.film(
        name,
        SOPInstanceUID=more.pop("uid", IDENTITY["sop_instance_uid"]),
        StudyInstanceUID=IDENTITY["study_instance_uid"],
        PatientID=IDENTITY["patient_id"],
        AccessionNumber=IDENTITY["accession_number"],
        StudyDate="20240511",
        PatientName="Zimtstern",
        **more,
    )
    values = {key: value for key, value in IDENTITY.items() if key != "sop_instance_uid"}
    with site.database.write() as connection:
        instance = connection.scalar(select(tables.job.c.instance_id).where(tables.job.c.id == job))
        connection.execute(
            tables.instance_identity.update().where(tables.instance_identity.c.instance_id == instance).values(**values)
        )
        connection.execute(
            tables.instance.update()
            .where(tables.instance.c.id == instance)
            .values(sex="F", age_days=1234, station="RAUM-17")
        )
    return job


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "films.jsonl").read_text("utf-8").splitlines()]


def test_a_document_per_film_with_all_that_is_known(site: Site, tmp_path: Path) -> None:
    film(site, stored=result(film=(120, 100), flags=("missing_region",), pneumonia=0.625))
    film(site, "b.dcm", uid="1.2.9")
    assert export_json(site.database, tmp_path, HIDDEN) == 2
    first, second = lines(tmp_path)
    assert first["bundle"] == "phantom:1"
    assert (first["film_rows"], first["film_columns"]) == (120, 100)
    assert first["flagged"] is True
    assert second["flags"] == []
    found = {entry["finding"]: entry for entry in first["findings"]}
    assert found["pneumonia"]["probability"] == pytest.approx(0.625)
    assert (found["pneumonia"]["code"], found["pneumonia"]["positive"]) == ("233604007", True)
    assert {entry["region"] for entry in first["regions"]} >= {"carina", "left_lung"}
    assert first["flags"][0]["rule"] == "missing_region"
    assert first["flags"][0]["sentence"]


def test_parquet_and_json_say_the_same(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Several row groups of a table, and one that never fills.
    monkeypatch.setattr(parquet, "ROW_GROUP", 5)
    for number in range(3):
        film(site, f"{number}.dcm", uid=f"1.2.9.{number}", stored=result(film=(120, 100), flags=("missing_region",)))
    for naming, folder in ((HIDDEN, tmp_path / "hidden"), (NAMED, tmp_path / "named")):
        assert export_parquet(site.database, folder, naming) == 3
        export_json(site.database, folder, naming)
        documents = lines(folder)
        tables_read = {
            name: pyarrow.parquet.read_table(folder / f"{name}.parquet").to_pylist()
            for name in ("films", "findings", "regions", "flags")
        }
        for name in ("findings", "regions", "flags"):
            assert tables_read[name] == [{"film": d["film"], **entry} for d in documents for entry in d[name]]
        nested = {"findings", "regions", "flags"}
        assert tables_read["films"] == [{k: v for k, v in d.items() if k not in nested} for d in documents]
        assert pyarrow.parquet.ParquetFile(folder / "regions.parquet").num_row_groups == 5
        # Empty columns keep their type.
        types = {field.name: str(field.type) for field in pyarrow.parquet.read_schema(folder / "regions.parquet")}
        assert types["area_mm2"] == "double"


def test_nothing_says_who_it_is_unless_asked(site: Site, tmp_path: Path) -> None:
    film(site)
    folder = tmp_path / "hidden"
    export_json(site.database, folder, HIDDEN)
    export_parquet(site.database, folder, HIDDEN)
    export_nifti(site.database, folder, HIDDEN)
    export_dicom(site.database, site.settings, folder, STRUCTURED, HIDDEN)
    written = sorted(folder.iterdir())
    assert len(written) == 8
    secrets = [*IDENTITY.values(), "20240511", "Zimtstern", "RAUM-17"]
    for path in written:
        data = path.read_bytes()
        data = gzip.decompress(data) if path.suffix == ".gz" else data
        for secret in secrets:
            assert secret.encode() not in data, (path.name, secret)
            assert secret not in path.name
    columns = set(lines(folder)[0])
    assert not columns & {"sex", "age_days", "finished_at", "station", *IDENTITY}


def test_age_and_sex_are_kept_on_request_and_identity_with_it(site: Site, tmp_path: Path) -> None:
    film(site)
    export_json(site.database, tmp_path / "a", Naming(identified=False, age_and_sex=True))
    (document,) = lines(tmp_path / "a")
    assert (document["sex"], document["age_days"]) == ("F", 1234)
    assert not set(document) & set(IDENTITY)
    export_json(site.database, tmp_path / "b", NAMED)
    (document,) = lines(tmp_path / "b")
    assert {key: document[key] for key in IDENTITY} == IDENTITY


def test_every_format_names_a_film_alike(site: Site, tmp_path: Path) -> None:
    film(site)
    export_json(site.database, tmp_path, HIDDEN)
    export_nifti(site.database, tmp_path, HIDDEN)
    export_dicom(site.database, site.settings, tmp_path, STRUCTURED, HIDDEN)
    (document,) = lines(tmp_path)
    key = document["film"]
    names = {path.name for path in tmp_path.iterdir() if path.is_file()}
    assert {f"{key}.nii.gz", f"{key}-segmentation.dcm", f"{key}-report.dcm"} <= names
    export_nifti(site.database, tmp_path / "named", NAMED)
    assert [path.name for path in (tmp_path / "named").iterdir()] == ["1.2.826.0.1.777.3.nii.gz"]


@pytest.mark.parametrize("flip", [False, True])
def test_a_label_map_reads_back_on_the_films_grid(site: Site, tmp_path: Path, flip: bool) -> None:
    film(site, stored=result(film=(120, 100), flip_columns=flip))
    assert export_nifti(site.database, tmp_path, NAMED) == 1
    image = nibabel.load(tmp_path / "1.2.826.0.1.777.3.nii.gz")
    data = np.asarray(image.dataobj)
    assert data.dtype == np.uint8
    assert data.shape == (100, 120, 1)
    np.testing.assert_array_equal(data[:, :, 0].T, to_film_grid(labels(), Geometry(120, 100, flip)))
    assert nibabel.aff2axcodes(image.affine) == ("R" if flip else "L", "I", "A")


def test_spacing_is_in_the_affine_where_it_is_known() -> None:
    grid = np.zeros((4, 6), np.uint8)
    known, unknown = Geometry(4, 6, row_spacing=0.2, column_spacing=0.3), Geometry(4, 6)
    image = nibabel.Nifti1Image.from_bytes(gzip.decompress(nifti_bytes(grid, known)))
    np.testing.assert_allclose(image.header.get_zooms(), (0.3, 0.2, 1.0), rtol=1e-6)
    assert image.header.get_xyzt_units()[0] == "mm"
    image = nibabel.Nifti1Image.from_bytes(gzip.decompress(nifti_bytes(grid, unknown)))
    assert image.header.get_xyzt_units()[0] == "unknown"
    assert affine_of(Geometry(4, 6, True, True))[0, 0] == 1.0
    assert affine_of(Geometry(4, 6, True, True))[2, 1] == 1.0
    assert nifti_bytes(grid, known) == nifti_bytes(grid, known)


def test_a_film_without_masks_has_documents_and_no_label_map(site: Site, tmp_path: Path) -> None:
    film(site, stored=without(result(film=(120, 100)), "segmentation"))
    assert export_nifti(site.database, tmp_path, HIDDEN) == 0
    assert export_json(site.database, tmp_path, HIDDEN) == 1


def test_dicom_files_are_what_was_asked_for(site: Site, tmp_path: Path) -> None:
    film(site)
    written = export_dicom(site.database, site.settings, tmp_path, list(OutputKind), NAMED)
    assert (written.files, written.films_left_out) == (4, 0)
    read = {path.name: pydicom.dcmread(path) for path in tmp_path.glob("*.dcm")}
    uid = IDENTITY["sop_instance_uid"]
    assert set(read) == {f"{uid}-{kind}.dcm" for kind in OutputKind}
    assert read[f"{uid}-segmentation.dcm"].Modality == "SEG"
    assert read[f"{uid}-report.dcm"].Modality == "SR"


def test_a_film_whose_file_is_gone_is_left_out_and_said(
    site: Site, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    film(site)
    job = film(site, "gone.dcm", uid="1.2.9")
    (site.folder / "gone.dcm").unlink()
    told: list[tuple[int, int]] = []
    with caplog.at_level(logging.ERROR):
        written = export_dicom(
            site.database, site.settings, tmp_path, STRUCTURED, HIDDEN, progress=lambda *at: told.append(at)
        )
    assert (written.files, written.films_left_out) == (2, 1)
    assert f"job {job}" in caplog.text
    assert "gone.dcm" not in caplog.text
    assert told == [(1, 2), (2, 2)]


def test_only_a_submissions_films(site: Site, tmp_path: Path) -> None:
    film(site)
    assert export_json(site.database, tmp_path / "a", HIDDEN, submission_id=99) == 0
    assert export_json(site.database, tmp_path / "b", HIDDEN, submission_id=site.films.submission) == 1


def test_identity_needs_the_right_key_and_leaves_a_record(site: Site) -> None:
    film(site)
    allow_identity(site.database, site.settings, "json", None)
    with site.database.read() as connection:
        (event,) = connection.execute(select(tables.audit_event)).all()
    assert (event.action, event.subject, event.detail["films"]) == ("export_with_identity", "json", 1)
    (site.settings.home / "site.key").write_text("ab" * 32)
    with pytest.raises(CarinaError, match="site key"):
        allow_identity(site.database, site.settings, "json", None)
    (site.settings.home / "site.key").unlink()
    with pytest.raises(CarinaError, match="site key"):
        allow_identity(site.database, site.settings, "json", None)


def test_a_folder_that_cannot_be_written_is_said(site: Site, tmp_path: Path) -> None:
    film(site)
    (tmp_path / "file").write_text("")
    for export in (export_json, export_parquet, export_nifti):
        with pytest.raises(CarinaError, match="cannot be written"):
            export(site.database, tmp_path / "file" / "out", HIDDEN)
