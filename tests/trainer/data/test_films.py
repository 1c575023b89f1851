from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from schema.keys import patient_key
from trainer.data.description import load_dataset
from trainer.data.records import Dataset, FilmRecord
from trainer.errors import DataError
from worker.film.reader import read_header
from worker.film.source import open_source
from worker.intake.rows import instance_row
from worker.phantom import dicom_bytes, make_phantom, phantom_dataset
from worker.settings import load_settings, site_key

TABLE = """
[images]
folder = "films"
[films]
files = [{ file = "films.csv" }]
"""
Rows = list[dict[str, Any]]
Make = Callable[[str, Rows], Path]


@pytest.fixture
def make(
    tmp_path: Path,
    picture: Callable[..., npt.NDArray[Any]],
    write: Callable[..., Path],
    write_table: Callable[..., Path],
) -> Make:
    """A directory with ``films/a.png`` to ``films/d.png``, a description and ``films.csv``."""

    def build(toml: str, rows: Rows) -> Path:
        for number, name in enumerate("abcd"):
            write(tmp_path / "films" / f"{name}.png", picture(8, 8, number))
        (tmp_path / "dataset.toml").write_text(toml)
        write_table(tmp_path / "films.csv", rows)
        return tmp_path

    return build


def by_name(films: Dataset) -> dict[str, FilmRecord]:
    return {record.name: record for record in films.records}


def findings(films: Dataset) -> dict[str, Mapping[str, bool | None]]:
    return {record.name: dict(record.findings) for record in films.records}


def test_a_table_says_whose_and_how_old(make: Make) -> None:
    rows = [
        {"name": "a", "child": "7", "years": "2.5", "sex": "Male", "set": "T"},
        {"name": "b.png", "child": "7", "years": "", "sex": "F", "set": "V"},
        {"name": "films/c.png", "child": "8", "years": "0", "sex": "", "set": ""},
        {"name": "/data/x/films/d.png", "child": "", "years": "10", "sex": "?", "set": "x"},
    ]
    toml = (
        TABLE
        + 'patient = ["child"]\nage = "years"\nsex = "sex"\npart = "set"\nparts = { T = "test", V = "validation" }'
    )
    films = by_name(load_dataset(make(toml, rows)))
    assert list(films) == ["a", "b", "c", "d"]
    assert films["a"].patient == films["b"].patient != films["c"].patient
    assert len({films[name].patient for name in "acd"}) == 3
    assert films["a"].age_days == pytest.approx(2.5 * 365.25) and films["b"].age_days is None
    assert films["c"].age_days == 0
    assert [films[name].sex for name in "abcd"] == ["M", "F", "", ""]
    assert [films[name].part for name in "abcd"] == ["test", "validation", "", ""]


@pytest.mark.parametrize("unit, days", [("days", 12.0), ("months", 365.25), ("years", 12 * 365.25)])
def test_ages_come_in_units(make: Make, unit: str, days: float) -> None:
    rows = [{"name": name, "age": "12"} for name in "abcd"]
    films = load_dataset(make(TABLE + f'age = "age"\nage_unit = "{unit}"', rows))
    assert films.records[0].age_days == pytest.approx(days)


@pytest.mark.parametrize("age", ["old", "-1", "inf", "nan"])
def test_an_impossible_age_is_refused(make: Make, age: str) -> None:
    rows = [{"name": name, "age": age if name == "c" else "1"} for name in "abcd"]
    with pytest.raises(DataError, match=f"c: 'age' is '{age}', which is not an age in years"):
        load_dataset(make(TABLE + 'age = "age"', rows))


def test_patients_are_not_kept_as_they_are_called(make: Make) -> None:
    rows = [{"name": name, "who": "Miller"} for name in "abcd"]
    films = load_dataset(make(TABLE + 'patient = ["who"]', rows))
    assert "Miller" not in repr(films)
    assert len(films.records[0].patient) == 64 and len({r.patient for r in films.records}) == 1


def test_a_patients_key_is_the_same_everywhere(make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    root = make(TABLE + 'patient = ["who"]', [{"name": name, "who": name} for name in "abcd"])
    here = load_dataset(root)
    monkeypatch.setenv("CARINA_HOME", str(tmp_path / "elsewhere"))
    assert load_dataset(root) == here


def test_several_columns_tell_patients_apart(make: Make) -> None:
    rows = [{"name": name, "set": set_, "number": "1"} for name, set_ in zip("abcd", "xxyy", strict=True)]
    films = load_dataset(make(TABLE + 'patient = ["set", "number"]', rows))
    patients = [record.patient for record in films.records]
    assert patients[0] == patients[1] != patients[2] == patients[3]


def test_copies_are_in_the_group_of_what_they_repeat(make: Make) -> None:
    rows = [{"name": name, "copy_of": copy} for name, copy in zip("abcd", ["", "a", "a.png", ""], strict=True)]
    groups = [record.group for record in load_dataset(make(TABLE + 'duplicate_of = "copy_of"', rows)).records]
    assert groups[0] == groups[1] == groups[2] != groups[3]


def test_copies_of_copies_stay_together(make: Make) -> None:
    rows = [{"name": name, "copy_of": copy} for name, copy in zip("abcd", ["b", "c", "", "elsewhere"], strict=True)]
    groups = [record.group for record in load_dataset(make(TABLE + 'duplicate_of = "copy_of"', rows)).records]
    assert groups[0] == groups[1] == groups[2] != groups[3]
    circle = [{"name": name, "copy_of": copy} for name, copy in zip("dcba", "cbda", strict=True)]
    circle[3]["copy_of"] = "b"
    groups = [record.group for record in load_dataset(make(TABLE + 'duplicate_of = "copy_of"', circle)).records]
    assert len(set(groups)) == 1


def test_films_of_a_group_are_told_by_its_column(make: Make) -> None:
    rows = [{"name": name, "g": g} for name, g in zip("abcd", ["1", "", "1", ""], strict=True)]
    groups = [record.group for record in load_dataset(make(TABLE + 'group = "g"', rows)).records]
    assert groups[0] == groups[2] != "" and groups[1] == groups[3] == ""


def test_rows_are_kept_by_value_and_what_is_left_out_is_counted(make: Make) -> None:
    rows = [{"name": name, "view": view} for name, view in zip("abc", ["PA", "LL", "AP"], strict=True)]
    rows.append({"name": "missing", "view": "LL"})
    films = load_dataset(make(TABLE + 'keep = { view = ["PA", "AP"] }', rows))
    assert [record.name for record in films.records] == ["a", "c"]
    assert films.origin["left out by films.keep"] == "1" and films.origin["left out: in no table"] == "1"


def test_films_a_table_names_but_are_not_there_are_refused(make: Make) -> None:
    rows = [{"name": name} for name in ("a", "x", "y")]
    with pytest.raises(DataError, match=r"x \(films\.csv\), y \(films\.csv\)"):
        load_dataset(make(TABLE, rows))


def test_films_named_twice_are_refused(make: Make) -> None:
    with pytest.raises(DataError, match=r"named twice.*: a"):
        load_dataset(make(TABLE, [{"name": "a"}, {"name": "a.png"}]))


def test_an_ambiguous_name_is_refused(make: Make, write: Callable[..., Path], tmp_path: Path) -> None:
    for folder in "xy":
        write(tmp_path / "films" / folder / "one.png", np.zeros((4, 4), np.uint8))
    with pytest.raises(DataError, match="one may be any of the images x/one, y/one"):
        load_dataset(make(TABLE, [{"name": "one"}]))


def test_two_images_of_one_name_are_refused(make: Make, write: Callable[..., Path], tmp_path: Path) -> None:
    write(tmp_path / "films" / "a.jpeg", np.zeros((4, 4), np.uint8))
    with pytest.raises(DataError, match=r"Two images are called a: a\.jpeg and a\.png"):
        load_dataset(make(TABLE, [{"name": "a"}]))


@pytest.mark.parametrize(
    "key, complaint",
    [
        ('name = "nmae"', "films.csv has no column 'nmae'; did you mean 'name'"),
        ('age = "agee"', "films.age names the column 'agee'"),
        ('patient = ["chld"]', "films.patient names the column 'chld'.*did you mean 'child'"),
        ('keep = { chilld = ["1"] }', "films.keep names the column 'chilld'"),
    ],
)
def test_a_column_that_is_not_there_is_refused(make: Make, key: str, complaint: str) -> None:
    with pytest.raises(DataError, match=complaint):
        load_dataset(make(TABLE + key, [{"name": name, "age": "1", "child": "1"} for name in "abcd"]))


def test_a_missing_table_is_refused(make: Make, tmp_path: Path) -> None:
    root = make(TABLE, [{"name": "a"}])
    (root / "films.csv").unlink()
    with pytest.raises(DataError, match=r"films\.csv cannot be read"):
        load_dataset(root)


RULE = """
[findings.columns.pneumonia]
column = "p"
positive = ["yes"]
negative = ["no"]
uncertain = ["?"]
"""


@pytest.mark.parametrize(
    "policies, expected",
    [
        ("", [True, False, None, None]),
        ('uncertain = "ones"\nblank = "zeros"', [True, False, True, False]),
        ('uncertain = "zeros"\nblank = "ones"', [True, False, False, True]),
    ],
)
def test_findings_are_told_by_values(make: Make, policies: str, expected: list[bool | None]) -> None:
    rows = [{"name": name, "p": value} for name, value in zip("abcd", ["yes", "no", "?", ""], strict=True)]
    films = load_dataset(make(TABLE + "[findings]\n" + policies + RULE, rows))
    assert [record.findings["pneumonia"] for record in films.records] == expected


def test_a_value_that_means_nothing_is_refused(make: Make) -> None:
    rows = [{"name": name, "p": "maybe" if name == "b" else "yes"} for name in "abcd"]
    with pytest.raises(DataError, match=r"b: 'p' is 'maybe', which is none of yes, no, \? \(pneumonia\)"):
        load_dataset(make(TABLE + RULE, rows))


MARKS = """
[findings]
absence = "no_finding"
[findings.columns]
no_finding = { column = "none" }
[findings.marks]
files = ["boxes.csv"]
[findings.marks.findings]
other_opacity = ["Opacity", "Haze"]
bronchitis = ["Bronchitis"]
"""


def test_marks_tell_findings_and_take_back_their_absence(
    make: Make, write_table: Callable[..., Path], tmp_path: Path
) -> None:
    boxes = [("a", "Haze"), ("a", "Opacity"), ("b", "Rib"), ("c", "Bronchitis"), ("elsewhere", "Haze")]
    write_table(tmp_path / "boxes.csv", [{"image_id": name, "class_name": label} for name, label in boxes])
    films = load_dataset(make(TABLE + MARKS, [{"name": name, "none": "1"} for name in "abcd"]))
    assert findings(films) == {
        "a": {"other_opacity": True, "bronchitis": False, "no_finding": False},
        "b": {"other_opacity": False, "bronchitis": False, "no_finding": True},
        "c": {"other_opacity": False, "bronchitis": True, "no_finding": False},
        "d": {"other_opacity": False, "bronchitis": False, "no_finding": True},
    }


def test_films_without_any_finding_can_be_left_out(make: Make) -> None:
    rows = [{"name": name, "p": value} for name, value in zip("abcd", ["yes", "no", "", "yes"], strict=True)]
    films = load_dataset(make(TABLE + "[findings]\nneed_one = true\n" + RULE, rows))
    assert [record.name for record in films.records] == ["a", "d"]
    assert films.origin["left out: no finding present"] == "2"


def test_a_film_may_have_no_truth(make: Make) -> None:
    toml = TABLE + '[truth]\nkind = "label_map"\nfolder = "maps"\nsuffix = ".tif"\nwhen = { drawn = ["1"] }'
    films = load_dataset(make(toml, [{"name": name, "drawn": str(int(name < "c"))} for name in "abcd"]))
    assert [record.truth_kind for record in films.records] == ["label_map", "label_map", "", ""]
    assert films.records[0].truth == films.root / "maps" / "a.tif"  # type: ignore[operator]
    assert films.records[3].truth is None


def test_fields_of_the_path_are_columns(tmp_path: Path, write: Callable[..., Path]) -> None:
    for name in ("ill/p1_1", "ill/p1_2", "well/p2_1"):
        write(tmp_path / "images" / f"{name}.png", np.zeros((4, 4), np.uint8))
    (tmp_path / "dataset.toml").write_text(
        "[images]\nfields = '(?P<state>ill|well)/(?P<child>p\\d)'\n[films]\npatient = [\"child\"]\n"
        '[findings.columns.pneumonia]\ncolumn = "state"\npositive = ["ill"]\nnegative = ["well"]\n'
    )
    films = by_name(load_dataset(tmp_path))
    assert list(films) == ["ill/p1_1", "ill/p1_2", "well/p2_1"]
    assert films["ill/p1_1"].patient == films["ill/p1_2"].patient != films["well/p2_1"].patient
    assert [record.findings["pneumonia"] for record in films.values()] == [True, True, False]
    write(tmp_path / "images" / "other.png", np.zeros((4, 4), np.uint8))
    with pytest.raises(DataError, match=r"does not match other\.png"):
        load_dataset(tmp_path)


def dicom(path: Path, seed: int, **known: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset = phantom_dataset(make_phantom(seed, rows=40, columns=40, age_days=int(3 * 365.25)))
    for name, value in known.items():
        setattr(dataset, name, value)
    path.write_bytes(dicom_bytes(dataset))
    return path


def test_headers_say_what_no_table_says(tmp_path: Path) -> None:
    dicom(tmp_path / "images" / "1.2.3", 1, PatientID="Miller-1", PatientSex="F")
    dicom(tmp_path / "images" / "1.2.4", 2, PatientID="Miller-1", IssuerOfPatientID="")
    dicom(tmp_path / "images" / "1.2.5", 3, PatientID="", StudyInstanceUID="1.9")
    dicom(tmp_path / "images" / "1.2.6", 4, PatientID="", StudyInstanceUID="1.9")
    films = by_name(load_dataset(tmp_path))
    assert list(films) == ["1.2.3", "1.2.4", "1.2.5", "1.2.6"]
    patients = [record.patient for record in films.values()]
    assert patients[0] == patients[1] != patients[2] == patients[3]
    assert patients[0] == patient_key(site_key(load_settings()), "", "Miller-1", otherwise="")
    assert "Miller" not in repr(films)
    assert films["1.2.3"].sex == "F"
    assert films["1.2.3"].age_days == pytest.approx(3 * 365.25, abs=31)


@pytest.mark.parametrize("known", [{}, {"PatientID": ""}, {"PatientID": "", "StudyInstanceUID": ""}])
def test_a_patients_key_is_the_databases(tmp_path: Path, known: dict[str, str]) -> None:
    path = dicom(tmp_path / "images" / "film.dcm", 1, **known)
    with open_source(path) as (stream, size):
        header = read_header(stream, size)
    in_database = instance_row(site_key(load_settings()), header, "", 1)
    assert load_dataset(tmp_path).records[0].patient == in_database["patient_key"]


def test_a_table_goes_before_a_header(tmp_path: Path, write_table: Callable[..., Path]) -> None:
    dicom(tmp_path / "films" / "a.dcm", 1)
    dicom(tmp_path / "films" / "b.dcm", 2)
    (tmp_path / "dataset.toml").write_text(TABLE + 'patient = ["who"]\nage = "age"')
    write_table(tmp_path / "films.csv", [{"name": name, "who": "x", "age": "9"} for name in "ab"])
    films = load_dataset(tmp_path)
    assert films.records[0].patient == films.records[1].patient
    assert films.records[0].age_days == pytest.approx(9 * 365.25)
    assert films.records[0].sex in "MF" and films.records[0].sex


def test_unreadable_headers_are_named(tmp_path: Path) -> None:
    dicom(tmp_path / "images" / "good.dcm", 1)
    (tmp_path / "images" / "bad.dcm").write_bytes(b"neither DICOM nor a picture" * 9)
    (tmp_path / "images" / "empty.dcm").write_bytes(b"")
    with pytest.raises(DataError, match=r"bad \(The file is not DICOM.*; empty \(The file has no bytes\)"):
        load_dataset(tmp_path)
