"""A data set described in TOML: where its films lie, what is true of them, and whose they are.

A description may start from a packaged layout (``layout = "chexpert"``) and say only what differs. A directory
without a description holds its films in ``images/`` and, of equal names, label maps in ``labels/``.

What a film is called, whose it is, and so on comes from its row: the named groups of ``images.fields`` found in its
path, and the columns of ``films.files``. What no row says of a DICOM film (patient, age, sex), its header says.

Patients are never kept as they are called. A patient ID of a DICOM header becomes the key that this
installation's database has for that patient (:func:`schema.keys.patient_key` under the site key), so that
``held_out`` means the same patients here and there. A patient named by a table becomes a key under a fixed one:
the same everywhere, and for the same reason no secret; such names must be pseudonyms already. A film that says
nothing of its patient is a patient of its own.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator, model_validator

from trainer.data.raw import RawPictures
from trainer.data.records import Dataset, phantom_dataset
from trainer.errors import DataError
from trainer.recipe import KNOWN_FINDINGS, KNOWN_REGIONS, nearest

LAYOUTS = Path(__file__).parent / "layouts"
PHANTOMS = "phantoms"

_FILE_NAME = "dataset.toml"
_DEFAULT_PHANTOMS = 400


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ImagesTable(_Table):
    """The films' files.

    ``folder`` lies below the description's directory. ``patterns`` are globs below it. ``fields`` is a regular
    expression searched in a file's path below ``folder``; its named groups become columns of the film's row. ``raw``
    says how pictures without a header are stored, where there are any.
    """

    folder: str = "images"
    patterns: tuple[str, ...] = ("**/*",)
    fields: str = ""
    raw: RawPictures | None = None


class TruthTable(_Table):
    """Where a film's regions are drawn.

    ``kind``: see :func:`trainer.data.truth.read_labels`. ``folder`` holds a file for each film, of the film's name with
    ``suffix``; ``coco`` has one ``file`` for all. Of ``masks`` there is a file for each film and region: ``masks`` maps
    a region to its folder below ``folder``, which may then be a glob, for films whose masks lie in several places.
    ``regions`` names a label map's values 0, 1, 2, ..., where these are not the recipe's own, or the regions that were
    drawn, where these are not Holste's eight. ``labels`` translates what
    drawn shapes are called (:mod:`trainer.polygons`). ``when`` (column → values) says which films have a truth at all;
    with ``may_lack`` a film without its file has none, instead of stopping the training.
    """

    kind: Literal["none", "label_map", "lungs", "masks", "labelme", "coco"] = "none"
    folder: str = "labels"
    suffix: str = ""
    file: str = ""
    regions: tuple[str, ...] = ()
    masks: dict[str, str] = {}
    labels: dict[str, str] = {}
    when: dict[str, tuple[str, ...]] = {}
    may_lack: bool = False

    @field_validator("regions", "masks")
    @classmethod
    def _known(cls, value: Any) -> Any:
        for name in value:
            if name not in KNOWN_REGIONS:
                raise ValueError(f"there is no region {name!r}{nearest(name, KNOWN_REGIONS)}")
        return value

    @model_validator(mode="after")
    def _masks_alone(self) -> TruthTable:
        if (self.kind == "masks") != bool(self.masks):
            raise ValueError('masks names the folders of regions for kind = "masks", and for no other')
        return self


class TableFile(_Table):
    """A CSV file with a header; ``part`` fixes the part of all its films."""

    file: str
    part: Literal["", "train", "validation", "test"] = ""


class FilmsTable(_Table):
    """What columns say of a film; every one may be left out.

    ``name`` is the film's file name or path, with or without suffix and leading folders. ``patient`` are columns that
    together tell patients apart. ``duplicate_of`` names the film this one repeats; films of one ``group`` stay
    together. ``parts`` translates the values of ``part``; what is not in it is free. ``fold`` tells which of the data
    set's own folds a film is in, ``folds`` translates its values. ``keep`` (column → values) says which rows count.
    """

    files: tuple[TableFile, ...] = ()
    name: str = "name"
    patient: tuple[str, ...] = ()
    group: str = ""
    duplicate_of: str = ""
    age: str = ""
    age_unit: Literal["years", "months", "days"] = "years"
    sex: str = ""
    part: str = ""
    parts: dict[str, Literal["train", "validation", "test"]] = {}
    fold: str = ""
    folds: dict[str, str] = {}
    keep: dict[str, tuple[str, ...]] = {}


class ColumnRule(_Table):
    """A finding that a column of the films' rows tells by its value."""

    column: str
    positive: tuple[str, ...] = ("1", "1.0")
    negative: tuple[str, ...] = ("0", "0.0")
    uncertain: tuple[str, ...] = ("-1", "-1.0")


class MarksTable(_Table):
    """Findings that tables tell by one row per mark: a film with such a row shows it, one without does not.

    ``name`` and ``label`` are columns; ``findings`` is slug → the labels that mean it; other labels
    are not looked at.
    """

    files: tuple[str, ...]
    name: str = "image_id"
    label: str = "class_name"
    findings: dict[str, tuple[str, ...]]


Policy = Literal["ignore", "zeros", "ones"]


class FindingsTable(_Table):
    """What a film shows.

    ``uncertain`` and ``blank`` say what such values mean: not known (``ignore``), absent (``zeros``), present
    (``ones``); the policies of CheXpert (Irvin et al. 2019, section 4). ``absence`` is a finding that means the absence
    of all others: it is taken back where another is present. ``need_one`` leaves out films without any present
    finding, which the Distribution-Balanced loss cannot weigh.
    """

    columns: dict[str, ColumnRule] = {}
    marks: MarksTable | None = None
    uncertain: Policy = "ignore"
    blank: Policy = "ignore"
    absence: str = ""
    need_one: bool = False


class DatasetDescription(_Table):
    """A checked description."""

    name: str
    images: ImagesTable = ImagesTable()
    truth: TruthTable = TruthTable()
    films: FilmsTable = FilmsTable()
    findings: FindingsTable = FindingsTable()

    @field_validator("findings")
    @classmethod
    def _known(cls, value: FindingsTable) -> FindingsTable:
        for slug in [*value.columns, *(value.marks.findings if value.marks else ()), *filter(None, [value.absence])]:
            if slug not in KNOWN_FINDINGS:
                raise ValueError(f"there is no finding {slug!r}{nearest(slug, KNOWN_FINDINGS)}")
        return value


def layout_names() -> list[str]:
    """The layouts that come with the trainer."""
    return sorted(path.stem for path in LAYOUTS.glob("*.toml"))


def load_dataset(source: str | Path, layout: str = "") -> Dataset:
    """Find out which films there are and what is known of them; no picture is read yet.

    Parameters
    ----------
    source
        ``phantoms``, a directory, or a description (``.toml``) whose directory holds the films.
    layout
        Name of a packaged layout (:func:`layout_names`) to read the directory by, whatever description it has.

    Raises
    ------
    DataError
        No such directory or layout, a wrong description (unknown keys with the nearest name), a table that lacks
        a column, names a film that is not there or gives a value that means nothing, or an unreadable DICOM header.
    """
    if str(source) == PHANTOMS:
        return phantom_dataset(_DEFAULT_PHANTOMS)
    from trainer.data.films import read_dataset

    description, root = find_description(Path(source), layout)
    return read_dataset(description, root)


def find_description(source: Path, layout: str = "") -> tuple[DatasetDescription, Path]:
    """The description of a directory or file, and the directory the films lie below."""
    if source.suffix == ".toml":
        return _described(source, layout), source.parent
    if not source.is_dir():
        raise DataError(f"There is no data directory {source}.")
    if layout:
        return _checked(_layout(layout), f"layout {layout}"), source
    if (source / _FILE_NAME).is_file():
        return _described(source / _FILE_NAME, ""), source
    truth = {"kind": "label_map"} if (source / "labels").is_dir() else {}
    return _checked({"name": source.resolve().name, "truth": truth}, "default"), source


def _described(path: Path, layout: str) -> DatasetDescription:
    table = _read(path)
    base = layout or str(table.get("layout", ""))
    table.pop("layout", None)
    if base:
        table = _merged(_layout(base), table)
    table.setdefault("name", path.parent.resolve().name)
    return _checked(table, path.name)


def _layout(name: str) -> dict[str, Any]:
    path = LAYOUTS / f"{name}.toml"
    if name not in layout_names():
        raise DataError(f"There is no layout {name!r}{nearest(name, layout_names())}")
    table = {"name": name, **_read(path)}
    base = table.pop("layout", "")
    return _merged(_layout(base), table) if base else table


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise DataError(f"The description {path} cannot be read: {error}.") from None


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = _merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def _checked(table: Mapping[str, Any], where: str) -> DatasetDescription:
    try:
        return DatasetDescription.model_validate(dict(table))
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False)
        raise DataError(f"The description {where}: {'; '.join(_sentence(problem) for problem in problems)}") from None


def _sentence(problem: Any) -> str:
    place = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"there is no key {place}{nearest(str(problem['loc'][-1]), _keys_at(problem['loc'][:-1]))}"
    words = problem["msg"].removeprefix("Value error, ")
    return f"{place}: {words[0].lower()}{words[1:]}"


def _keys_at(location: tuple[int | str, ...]) -> list[str]:
    """The keys of the table at ``location``."""
    model: type[BaseModel] = DatasetDescription
    for part in location:
        field = model.model_fields.get(str(part))
        if field is None:  # an entry of a list or of a mapping, of which the model is its own
            continue
        annotation: Any = field.annotation
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        model = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), model)
    return list(model.model_fields)
