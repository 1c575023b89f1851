"""The films of a data directory, each with what paths and tables say of it."""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from trainer.data.description import DatasetDescription, ImagesTable
from trainer.data.records import some_of
from trainer.errors import DataError
from trainer.recipe import nearest

#: Endings that are not part of a film's name; others are, since a UID has dots too.
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".dcm", ".dicom", ".img"})


@dataclass(frozen=True)
class Row:
    """One film: its name and file, what the table calls it (``""`` without a table), its columns and fixed part."""

    name: str
    image: Path
    called: str
    columns: Mapping[str, str]
    part: str = ""

    def value(self, column: str, where: str) -> str:
        """A column's value without surrounding space.

        Raises
        ------
        DataError
            There is no such column; ``where`` says which key of the description asked for it.
        """
        if column not in self.columns:
            raise DataError(
                f"{where} names the column {column!r}, which no table or images.fields of the data set has"
                f"{nearest(column, self.columns)}"
            )
        return self.columns[column]

    def matches(self, wanted: Mapping[str, Sequence[str]], where: str) -> bool:
        """Whether every column has one of its wanted values."""
        return all(self.value(column, where) in values for column, values in wanted.items())


def read_rows(description: DatasetDescription, root: Path) -> tuple[list[Row], dict[str, str]]:
    """All rows of a data set in order of name, and what was left out on the way, in words.

    Raises
    ------
    DataError
        No image, two images of one name, a table without the column that names films, or films named in it that are
        missing or named twice (up to twenty are named).
    """
    found = find_images(description.images, root)
    fields = {name: _fields(description.images, root, path) for name, path in found.items()}
    origin = {"images": str(len(found))}
    if description.films.files:
        rows = _joined(description, root, found, fields)
        if len(rows) < len(found):
            origin["left out: in no table"] = str(len(found) - len(rows))
    else:
        rows = [Row(name, path, "", fields[name]) for name, path in found.items()]
    keep = description.films.keep
    kept = [row for row in rows if row.matches(keep, "films.keep")]
    if len(kept) < len(rows):
        origin["left out by films.keep"] = str(len(rows) - len(kept))
    return sorted(kept, key=lambda row: row.name), origin


def find_images(images: ImagesTable, root: Path) -> dict[str, Path]:
    """Film name (its path below the image folder, without suffix) → file."""
    folder = root / images.folder
    found: dict[str, Path] = {}
    for pattern in images.patterns:
        for path in sorted(folder.glob(pattern)):
            if path.name.startswith(".") or not path.is_file():
                continue
            name = without_suffix(path.relative_to(folder).as_posix())
            if found.setdefault(name, path) != path:
                raise DataError(f"Two images are called {name}: {found[name].name} and {path.name}. Rename one.")
    if not found:
        raise DataError(
            f"There is no image in {folder} ({', '.join(images.patterns)}): see images.folder and images.patterns."
        )
    return found


def read_table(root: Path, file: str, needed: Iterable[str]) -> Iterator[dict[str, str]]:
    """Rows of a CSV file, values without surrounding space.

    Raises
    ------
    DataError
        It cannot be read or lacks a needed column (the nearest is named).
    """
    path = root / file
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            table = csv.DictReader(stream)
            for column in needed:
                if column not in (table.fieldnames or ()):
                    raise DataError(f"{file} has no column {column!r}{nearest(column, table.fieldnames or ())}")
            for row in table:
                yield {key: (value or "").strip() for key, value in row.items() if isinstance(key, str)}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"The table {path} cannot be read: {error}.") from None


def without_suffix(path: str) -> str:
    """A path without the ending of a picture's file name."""
    pure = PurePosixPath(path)
    return str(pure.with_suffix("")) if pure.suffix.lower() in SUFFIXES else str(pure)


def _joined(
    description: DatasetDescription, root: Path, found: Mapping[str, Path], fields: Mapping[str, Mapping[str, str]]
) -> list[Row]:
    by_stem: dict[str, list[str]] = defaultdict(list)
    for name in found:
        by_stem[PurePosixPath(name).name].append(name)
    column = description.films.name
    rows: dict[str, Row] = {}
    missing: list[str] = []
    twice: list[str] = []
    for table in description.films.files:
        for columns in read_table(root, table.file, [column]):
            name = _image_of(columns[column], found, by_stem)
            if not name:
                # What films.keep leaves out need not be there.
                if Row("", Path(), "", columns).matches(description.films.keep, "films.keep"):
                    missing.append(f"{columns[column]} ({table.file})")
            elif name in rows:
                twice.append(name)
            else:
                rows[name] = Row(name, found[name], columns[column], {**fields[name], **columns}, table.part)
    if missing:
        folder = root / description.images.folder
        raise DataError(f"Films that tables name but {folder} has not: {some_of(missing)}. See films.name and images.")
    if twice:
        raise DataError(f"Films named twice in the data set's tables: {some_of(twice)}.")
    return list(rows.values())


def _image_of(called: str, found: Mapping[str, Path], by_stem: Mapping[str, list[str]]) -> str:
    """The image a table means: by its path, with fewer and fewer leading folders, or by its file name; or ``""``."""
    name = without_suffix(called)
    parts = PurePosixPath(name).parts
    for first in range(len(parts)):
        shorter = "/".join(parts[first:])
        if shorter in found:
            return shorter
    alike = by_stem.get(parts[-1], []) if len(parts) == 1 else []
    if len(alike) > 1:
        raise DataError(f"{called} may be any of the images {some_of(alike)}: let films.name give their paths.")
    return alike[0] if alike else ""


def _fields(images: ImagesTable, root: Path, path: Path) -> dict[str, str]:
    if not images.fields:
        return {}
    place = path.relative_to(root / images.folder).as_posix()
    found = re.search(images.fields, place)
    if not found:
        raise DataError(f"images.fields does not match {place}: correct it, or narrow images.patterns.")
    return {name: value or "" for name, value in found.groupdict().items()}
