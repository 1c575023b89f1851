"""What is known of each film before its picture is read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from schema.regions import REGION_SETS, Region, parts_of
from trainer.data import phantoms
from trainer.data.raw import RawPictures
from trainer.errors import DataError
from trainer.recipe import Recipe

TruthKind = Literal["", "label_map", "lungs", "masks", "labelme", "coco", "phantom"]

#: Regions that a mask of both lungs tells, in the order of their label values.
LUNGS: tuple[str, ...] = (str(Region.BACKGROUND), str(Region.LEFT_LUNG), str(Region.RIGHT_LUNG))

#: The eight regions that outlines, a rule or a phantom tell, in the order of their label values.
EIGHT: tuple[str, ...] = tuple(str(name) for name in REGION_SETS["holste"])

#: Kind of truth → the regions its label values mean, where that is always the same.
TRUTH_REGIONS: dict[TruthKind, tuple[str, ...]] = {
    "lungs": LUNGS,
    "labelme": EIGHT,
    "coco": EIGHT,
    "phantom": EIGHT,
}

#: Parts a film can belong to.
PARTS: tuple[str, ...] = ("train", "validation", "test")

#: A list of bad films in an error stops here.
MOST_NAMED = 20


@dataclass(frozen=True)
class FilmRecord:
    """One film.

    Attributes
    ----------
    name
        Unique in its data set: the image's path below the image folder, without suffix, or what the table calls it.
    image
        Its file; None for a phantom.
    truth
        The file its truth is in; None when it has none, has ``masks``, or is a phantom. Whether it exists is not
        checked yet.
    patient
        A key, never what a file or table calls the patient: see :mod:`trainer.data.description`.
    findings
        Slug → present, absent, or None for not known. A slug that is missing is not known either.
    age_days
        At the study, in days; None when not known.
    sex
        ``"F"``, ``"M"``, ``"O"`` or ``""``.
    part
        ``"train"``, ``"validation"`` or ``"test"`` where the data set itself fixes it, else ``""``.
    group
        Films of one non-empty group stay together whoever their patients are: duplicates of one picture.
    truth_kind
        How ``truth`` is read: see :mod:`trainer.data.truth`; ``""`` when there is none.
    truth_regions
        Names of a label map's values 0, 1, 2, ..., or the regions that were drawn; empty when they are the recipe's
        own, or Holste's eight.
    truth_labels
        What drawn shapes are called → region or outline (:mod:`trainer.polygons`).
    seed
        Of a phantom.
    masks
        Region → the file with its mask, where each region has one of its own.
    fold
        Which of the data set's own folds it is in; ``""`` where there are none.
    raw
        How its file is stored, if it is a raw picture.
    """

    name: str
    image: Path | None
    truth: Path | None
    patient: str
    findings: Mapping[str, bool | None] = field(default_factory=dict)
    age_days: float | None = None
    sex: str = ""
    part: str = ""
    group: str = ""
    truth_kind: TruthKind = ""
    truth_regions: tuple[str, ...] = ()
    truth_labels: Mapping[str, str] = field(default_factory=dict)
    seed: int | None = None
    masks: Mapping[str, Path] = field(default_factory=dict)
    fold: str = ""
    raw: RawPictures | None = None

    @property
    def truth_files(self) -> tuple[Path, ...]:
        """The files its truth is in."""
        return (self.truth,) if self.truth is not None else tuple(self.masks.values())


@dataclass(frozen=True)
class Dataset:
    """Films and where they come from.

    ``root`` is the data directory, None for phantoms. ``origin`` says in words what was read and what was left
    out, for the run folder and the model card.
    """

    name: str
    records: tuple[FilmRecord, ...]
    root: Path | None
    origin: dict[str, str]

    def for_recipe(self, recipe: Recipe) -> Dataset:
        """The films that a recipe can learn from or be judged on.

        Segmentation needs a truth (from one of the lungs alone, other regions are derived, and ``origin`` says so),
        classification at least one known finding of the recipe's. Of the phantoms
        ``data.phantoms`` are drawn, those that show no chest included; these have an empty truth and no finding.

        Raises
        ------
        DataError
            A region the truth does not tell, truths' files that are missing (up to twenty are named), a finding
            that is never known, or no film left.
        """
        films = self if self.root is not None else phantom_dataset(recipe.data.phantoms)
        if recipe.task == "segmentation":
            films = films._segmented(recipe.data.regions)
        else:
            films = films._judged(recipe.data.findings)
        return films._with_phantoms(recipe) if recipe.data.added_phantoms and self.root is not None else films

    def _with_phantoms(self, recipe: Recipe) -> Dataset:
        """Phantoms join the training part only: what is measured stays real."""
        drawn = phantom_dataset(recipe.data.added_phantoms)
        if recipe.task == "classification":
            drawn = drawn._judged(recipe.data.findings)
        added = tuple(replace(record, part="train") for record in drawn.records)
        origin = {**self.origin, "phantoms added to the training part": str(len(added))}
        return replace(self, records=(*self.records, *added), origin=origin)

    def _segmented(self, regions: tuple[str, ...]) -> Dataset:
        kept = [record for record in self.records if record.truth_kind]
        origin = dict(self.origin)
        for kind, told in {(r.truth_kind, r.truth_regions or TRUTH_REGIONS.get(r.truth_kind, regions)) for r in kept}:
            missed = [region for region in regions if not tells(told, region)]
            untold = ", ".join(missed)
            if untold and not (kind == "lungs" and all(tells(EIGHT, region) for region in missed)):
                raise DataError(
                    f"The truth of {self.name} tells {', '.join(told)} and no {untold}: "
                    "leave these out of data.regions."
                )
            if untold:
                origin["derived from the lungs by geometry"] = untold
        missing = [(record, file) for record in kept for file in record.truth_files if not file.is_file()]
        if missing:
            listed = some_of(f"{record.name} ({file})" for record, file in missing)
            lacking = len({record.name for record, _ in missing})
            raise DataError(
                f"{_films(lacking)} of {self.name} lack the truth their description promises: {listed}. "
                "Add the files, or say with truth.when which films have none."
            )
        return replace(self, origin=origin)._only(kept, "without truth", "has a truth to learn regions from")

    def _judged(self, findings: tuple[str, ...]) -> Dataset:
        for finding in findings:
            if all(record.findings.get(finding) is None for record in self.records):
                known = sorted({slug for r in self.records for slug, said in r.findings.items() if said is not None})
                raise DataError(
                    f"No film of {self.name} says anything about {finding}: leave it out of data.findings "
                    f"(known are {', '.join(known) or 'none'}), or map it in the data set's description."
                )
        kept = [r for r in self.records if any(r.findings.get(finding) is not None for finding in findings)]
        return self._only(kept, "without a known finding", "has a known finding")

    def _only(self, kept: list[FilmRecord], why: str, what: str) -> Dataset:
        if not kept:
            raise DataError(f"No film of {self.name} {what}.")
        dropped = len(self.records) - len(kept)
        origin = {**self.origin, "films": str(len(kept))} | ({f"left out {why}": str(dropped)} if dropped else {})
        return replace(self, records=tuple(kept), origin=origin)


def phantom_dataset(count: int) -> Dataset:
    """The data set ``phantoms``: ``count`` drawn films, each of a patient of its own; the first ones never change."""
    records = []
    for seed in range(count):
        drawing = phantoms.drawing_of(seed)
        name = f"phantom-{seed:06d}"
        records.append(
            FilmRecord(
                name,
                None,
                None,
                name,
                drawing.findings,
                drawing.age_days,
                truth_kind="phantom",
                seed=seed,
            )
        )
    origin = {"data set": "phantoms", "films": str(count), "truth": "drawn, exact"}
    return Dataset("phantoms", tuple(records), None, origin)


def tells(told: Iterable[str], region: str) -> bool:
    """Whether a truth that tells these regions tells ``region``, itself or all that it is made of.

    Background is told by whatever else is.
    """
    known = {*told, str(Region.BACKGROUND)}
    return region in known or {*parts_of(region)} <= known


def some_of(items: Iterable[str]) -> str:
    """Up to twenty of them, and how many more there are."""
    listed = list(items)
    more = len(listed) - MOST_NAMED
    return ", ".join(listed[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def _films(count: int) -> str:
    return "1 film" if count == 1 else f"{count} films"
