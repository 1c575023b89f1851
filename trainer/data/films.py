"""From rows to records: whose a film is, how old, what it shows, where its truth lies."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path

from schema.keys import patient_key
from trainer.data.description import DatasetDescription, FilmsTable, FindingsTable, MarksTable, Policy, TruthTable
from trainer.data.images import is_dicom
from trainer.data.raw import RawPictures
from trainer.data.records import MOST_NAMED, Dataset, FilmRecord, TruthKind, some_of
from trainer.data.rows import Row, read_rows, read_table, without_suffix
from trainer.data.stripped import completed, is_stripped
from trainer.errors import DataError
from worker.errors import FilmError
from worker.film.reader import FilmHeader, read_header
from worker.film.source import open_source
from worker.settings import load_settings, site_key

_DAYS = {"years": 365.25, "months": 365.25 / 12, "days": 1.0}
_SUFFIXES = {"label_map": ".png", "lungs": ".png", "masks": ".png", "labelme": ".json"}
_SEXES = {"f": "F", "m": "M", "o": "O"}
#: Keys patients that a table names: the same everywhere, so that a split is.
_TABLE_KEY = b"patients named by a table"
_MEANING: dict[Policy, bool | None] = {"ignore": None, "zeros": False, "ones": True}


@dataclass(frozen=True)
class _Person:
    """Whose film it is."""

    patient: str
    age_days: float | None
    sex: str


def read_dataset(description: DatasetDescription, root: Path) -> Dataset:
    """Every film that a description finds below ``root``; raises as :func:`trainer.data.description.load_dataset`."""
    rows, origin = read_rows(description, root)
    marks = _marks(description.findings.marks, root)
    persons = _persons(rows, description.films, description.images.raw)
    originals = _originals(rows, description.films)
    raw = description.images.raw
    folders = sorted(root.glob(description.truth.folder)) if description.truth.masks else []
    records = []
    unlabelled = 0
    for row, person in zip(rows, persons, strict=True):
        findings = _findings(row, description.findings, marks)
        if description.findings.need_one and not any(findings.values()):
            unlabelled += 1
            continue
        kind, truth, masks = _truth(row, description.truth, root, folders)
        records.append(
            FilmRecord(
                row.name,
                row.image,
                truth,
                person.patient,
                findings,
                person.age_days,
                person.sex,
                _part(row, description.films),
                _group(row, description.films, originals),
                kind,
                tuple(masks) or description.truth.regions,
                description.truth.labels,
                masks=masks,
                fold=_fold(row, description.films),
                raw=raw if raw is not None and raw.describes(row.image) else None,
            )
        )
    if unlabelled:
        origin["left out: no finding present"] = str(unlabelled)
    if not records:
        raise DataError(f"No film of {description.name} is left: see films.keep and findings.need_one.")
    origin = {"data set": description.name, "films": str(len(records)), "truth": description.truth.kind, **origin}
    return Dataset(description.name, tuple(records), root, origin)


def _part(row: Row, films: FilmsTable) -> str:
    if row.part or not films.part:
        return row.part
    return films.parts.get(row.value(films.part, "films.part"), "")


def _fold(row: Row, films: FilmsTable) -> str:
    said = row.value(films.fold, "films.fold") if films.fold else ""
    return films.folds.get(said, said)


def _group(row: Row, films: FilmsTable, originals: Mapping[str, str]) -> str:
    """Every film is in the group it starts; its copies, and theirs, are in the same one."""
    if films.group and row.value(films.group, "films.group"):
        return f"group {row.value(films.group, 'films.group')}"
    if not films.duplicate_of:
        return ""
    name = without_suffix(row.called or row.name)
    passed = [name]
    while (name := originals.get(name, "")) and name not in passed:
        passed.append(name)
    # Films that repeat each other in a circle are named after the first in the alphabet, whichever one starts.
    return f"film {min(passed[passed.index(name) :]) if name else passed[-1]}"


def _originals(rows: Sequence[Row], films: FilmsTable) -> dict[str, str]:
    """A copy's name → what it repeats."""
    if not films.duplicate_of:
        return {}
    said = {row.called or row.name: row.value(films.duplicate_of, "films.duplicate_of") for row in rows}
    return {without_suffix(copy): without_suffix(original) for copy, original in said.items() if original}


def _truth(
    row: Row, truth: TruthTable, root: Path, folders: Sequence[Path]
) -> tuple[TruthKind, Path | None, dict[str, Path]]:
    """How the truth is read, its file, and of masks each region's; ``folders`` are those that may hold masks."""
    if truth.kind == "none" or not row.matches(truth.when, "truth.when"):
        return "", None, {}
    if truth.kind == "coco":
        return truth.kind, root / truth.file, {}
    name = f"{row.name}{truth.suffix or _SUFFIXES[truth.kind]}"
    if truth.kind == "masks":
        masks = {region: _mask(row, truth, root, folders, f"{below}/{name}") for region, below in truth.masks.items()}
        lacking = truth.may_lack and not any(path.is_file() for path in masks.values())
        return ("", None, {}) if lacking else (truth.kind, None, masks)
    path = root / truth.folder / name
    if truth.may_lack and not path.is_file():
        return "", None, {}
    return truth.kind, path, {}


def _mask(row: Row, truth: TruthTable, root: Path, folders: Sequence[Path], place: str) -> Path:
    found = [folder / place for folder in folders if (folder / place).is_file()]
    if len(found) > 1:
        raise DataError(f"{row.name} has two masks, {found[0]} and {found[1]}: let truth.folder mean one of them.")
    return found[0] if found else root / truth.folder / place


def _persons(rows: Sequence[Row], films: FilmsTable, raw: RawPictures | None) -> list[_Person]:
    """Patient, age and sex: from the row, and what it does not say from a DICOM header."""
    persons: list[_Person] = []
    unreadable: list[str] = []
    keys = cache(lambda: site_key(load_settings()))
    untold = not (films.patient and films.age and films.sex)
    for row in rows:
        try:
            header = _header(row.image) if untold and not (raw and raw.describes(row.image)) else None
        except (FilmError, OSError) as error:
            unreadable.append(f"{row.name} ({str(error).rstrip('.')})")
            if len(unreadable) == MOST_NAMED:
                break
            continue
        told = _Person("", None, "") if header is None else _Person(_key(header, keys()), header.age_days, header.sex)
        persons.append(
            _Person(
                told.patient if told.patient and not films.patient else _table_key(row, films),
                _age(row, films) if films.age else told.age_days,
                _SEXES.get(row.value(films.sex, "films.sex")[:1].lower(), "") if films.sex else told.sex,
            )
        )
    if unreadable:
        raise DataError(f"Films whose headers cannot be read: {'; '.join(unreadable)}. Mend or remove them.")
    return persons


def _key(header: FilmHeader, key: bytes) -> str:
    # As worker.intake.rows makes it for the database.
    study = header.study_instance_uid or header.sop_instance_uid
    return patient_key(key, header.issuer_of_patient_id, header.patient_id, otherwise=study)


def _table_key(row: Row, films: FilmsTable) -> str:
    called = [row.value(column, "films.patient") for column in films.patient]
    return patient_key(_TABLE_KEY, "", "\0".join(called) if any(called) else "", otherwise=row.name)


def _header(image: Path) -> FilmHeader | None:
    """The header of a DICOM film, None for a picture."""
    if not is_dicom(image):
        return None
    try:
        with open_source(image) as (stream, size):
            return read_header(stream, size)
    except FilmError as error:
        if not is_stripped(error):
            raise
    data = completed(image, pixels=False)
    return read_header(BytesIO(data), len(data))


def _age(row: Row, films: FilmsTable) -> float | None:
    text = row.value(films.age, "films.age")
    if not text:
        return None
    try:
        age = float(text)
    except ValueError:
        age = -1.0
    if not 0 <= age < float("inf"):
        raise DataError(f"{row.name}: {films.age!r} is {text!r}, which is not an age in {films.age_unit}.")
    return age * _DAYS[films.age_unit]


def _marks(table: MarksTable | None, root: Path) -> dict[str, set[str]]:
    """What the table calls a film → findings that are marked on it."""
    marked: dict[str, set[str]] = defaultdict(set)
    if table is None:
        return marked
    slugs = {label: slug for slug, labels in table.findings.items() for label in labels}
    for file in table.files:
        for row in read_table(root, file, [table.name, table.label]):
            if row[table.label] in slugs:
                marked[row[table.name]].add(slugs[row[table.label]])
    return marked


def _findings(row: Row, table: FindingsTable, marks: Mapping[str, set[str]]) -> dict[str, bool | None]:
    findings: dict[str, bool | None] = {}
    for slug, rule in table.columns.items():
        value = row.value(rule.column, f"findings.columns.{slug}")
        if not value:
            findings[slug] = _MEANING[table.blank]
        elif value in rule.positive or value in rule.negative:
            findings[slug] = value in rule.positive
        elif value in rule.uncertain:
            findings[slug] = _MEANING[table.uncertain]
        else:
            known = some_of([*rule.positive, *rule.negative, *rule.uncertain])
            raise DataError(f"{row.name}: {rule.column!r} is {value!r}, which is none of {known} ({slug}).")
    if table.marks is not None:
        marked = marks.get(row.called or row.name, set())
        findings |= {slug: slug in marked for slug in table.marks.findings}
    if table.absence and any(present for slug, present in findings.items() if slug != table.absence):
        findings[table.absence] = False
    return findings
