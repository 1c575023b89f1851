"""Recipes: everything that decides what comes out of a training, in one TOML file.

A recipe may start from another (``base``) and say only what differs. Keys nobody knows are
refused with the nearest one that exists: a misspelt setting must not silently train
something else. The networks', losses' and augmentations' own options are checked where
they are built, by the same rule.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from schema.bundle import BundleError
from schema.findings import CHEXPERT_OBSERVATIONS, Finding
from schema.regions import HOLSTE_REGIONS, LUNGS, REGION_BY_NAME, Region, RegionDefinition
from trainer.errors import RecipeError
from worker.film import preprocess
from worker.findings.postprocess import PostprocessSettings

RECIPES = Path(__file__).parent / "recipes"


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class NetworkTable(_Table):
    """Which network; ``options`` are its own, ``checkpoint`` a local file of weights to start from."""

    name: str
    options: dict[str, Any] = {}
    checkpoint: str = ""


class LossTable(_Table):
    """Which loss; ``pixel_weights`` is one of Holste's maps, ``guidance`` weighs a place head's own loss.

    ``evidence`` weighs the share of a classifier's activation maps that lies outside the lungs, on the films whose
    lungs are known: what decides shall be seen in the lungs, not beside them. The network itself is never shown them.
    """

    name: str
    options: dict[str, Any] = {}
    pixel_weights: Literal["", "w1", "w2", "w3"] = ""
    guidance: float = Field(0.0, ge=0)
    evidence: float = Field(0.0, ge=0)


class SplitTable(_Table):
    """Shares of the patients; ``folds`` > 1 asks for fold ``fold`` (0-based) of a cross-validation instead.

    ``held_out`` also keeps the patients out whose key the database marks as held out
    (:func:`schema.keys.is_held_out`): they become the test part.
    """

    train: float = Field(0.70, gt=0, le=1)
    validation: float = Field(0.15, ge=0, lt=1)
    test: float = Field(0.15, ge=0, lt=1)
    folds: int = Field(0, ge=0)
    fold: int = Field(0, ge=0)
    held_out: bool = False
    seed: int = 1

    @model_validator(mode="after")
    def _whole(self) -> SplitTable:
        if self.folds == 1 or (self.folds and self.fold >= self.folds):
            raise ValueError("folds must be 0 or at least 2, and fold below it")
        if abs(self.train + self.validation + self.test - 1) > 1e-6:
            raise ValueError("train, validation and test must add up to 1")
        return self


class DataTable(_Table):
    """What a film's truth is made of; where the films lie is the command line's business.

    ``regions`` are names of label values 0, 1, 2, ... in this order. ``films`` > 0 trains on that many
    films only, chosen by the split's seed. ``phantoms`` is how many are drawn when the data are phantoms,
    ``added_phantoms`` how many join the training part of other data.
    """

    regions: tuple[str, ...] = ()
    findings: tuple[str, ...] = ()
    films: int = Field(0, ge=0)
    phantoms: int = Field(400, ge=8)
    added_phantoms: int = Field(0, ge=0)
    split: SplitTable = SplitTable()

    @field_validator("regions", "findings", mode="before")
    @classmethod
    def _as_tuple(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value


class SavedCopiesTable(_Table):
    """Transformed copies of each training film, made once: Holste section 2.2.

    ``elastic_sigma`` and ``elastic_alpha`` are pixels of the network's grid, ``rotation`` degrees.
    """

    copies: int = Field(0, ge=0)
    elastic_sigma: float = Field(5.0, gt=0)
    elastic_alpha: float = Field(30.0, ge=0)
    rotation: float = Field(15.0, ge=0, le=180)


class LiveTable(_Table):
    """Transformations drawn anew each time a film is seen; every one off at 0.

    ``rotation`` degrees; ``shift`` and ``crop`` fractions of the picture's side; ``scale`` relative;
    ``elastic`` pixels at the network's grid; ``flip`` and the ``*_chance`` probabilities; ``gamma`` in
    natural-log units; ``window`` fraction of the grey range; ``blur`` and ``noise`` standard
    deviations in pixels and grey range; ``border`` and ``marker`` probabilities.
    """

    rotation: float = Field(0.0, ge=0, le=180)
    shift: float = Field(0.0, ge=0, le=0.5)
    scale: float = Field(0.0, ge=0, lt=1)
    crop: float = Field(0.0, ge=0, lt=0.5)
    elastic: float = Field(0.0, ge=0)
    flip: float = Field(0.0, ge=0, le=1)
    gamma: float = Field(0.0, ge=0)
    window: float = Field(0.0, ge=0, lt=0.5)
    blur: float = Field(0.0, ge=0)
    noise: float = Field(0.0, ge=0)
    border: float = Field(0.0, ge=0, le=1)
    marker: float = Field(0.0, ge=0, le=1)
    invert: float = Field(0.0, ge=0, le=1)


class AugmentationTable(_Table):
    """How training films are varied."""

    saved: SavedCopiesTable = SavedCopiesTable()
    live: LiveTable = LiveTable()


class OptimiserTable(_Table):
    """``rate`` is the learning rate, the highest of a schedule that has a peak; ``momentum`` is SGD's alone."""

    name: Literal["adam", "adamw", "sgd", "rmsprop"] = "adam"
    rate: float = Field(1e-3, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0)


class ScheduleTable(_Table):
    """How the learning rate moves.

    ``cosine`` warms up over ``warm_up`` (share of all steps) and falls to 0; ``triangular`` rises from
    ``rate * lowest`` to ``rate`` and back once per ``cycle`` epochs (0: once over the training).
    """

    name: Literal["constant", "cosine", "triangular"] = "constant"
    warm_up: float = Field(0.05, ge=0, lt=1)
    lowest: float = Field(0.0, ge=0, lt=1)
    cycle: int = Field(0, ge=0)


class TrainingTable(_Table):
    """The loop.

    An epoch is one pass over the training films, or ``steps_per_epoch`` batches when that is given.
    ``patience`` epochs without a better ``monitor`` end the training (0: never); the weights of the
    best epoch are kept, or the last with ``keep = "last"``. ``ema`` is the decay of an averaged copy of the
    weights, which is then what is measured and kept (0: none).
    """

    epochs: int = Field(ge=1)
    steps_per_epoch: int = Field(0, ge=0)
    batch_size: int = Field(ge=1)
    accumulate: int = Field(1, ge=1)
    patience: int = Field(0, ge=0)
    monitor: Literal["mean_dice", "lung_dice", "mean_auroc", "loss"] = "loss"
    keep: Literal["best", "last"] = "best"
    precision: Literal["32", "bf16", "auto"] = "32"
    channels_last: bool = False
    ema: float = Field(0.0, ge=0, lt=1)
    gradient_clip: float = Field(0.0, ge=0)
    seed: int = 1


class BundleTable(_Table):
    """The bundle a finished training writes.

    ``members`` name further recipes that are trained too and join it; ``segmentation`` takes the
    segmentation network of an existing bundle (a directory, or ``packaged``) for a recipe that trains findings only.
    ``origin`` says how the regions' truth was made (annotated, derived, exact), ``derived`` names those that
    differ in being derived. ``notes`` say of a region what it means here (:class:`schema.bundle.BundleRegion`).
    ``postprocess`` are settings of :mod:`worker.findings.postprocess`.
    """

    name: str
    version: str = "1"
    description: str = ""
    members: tuple[str, ...] = ()
    segmentation: str = ""
    origin: Literal["annotated", "derived", "exact"] = "annotated"
    derived: tuple[str, ...] = ()
    notes: dict[str, str] = {}
    postprocess: dict[str, Any] = {}

    @field_validator("postprocess")
    @classmethod
    def _known_postprocess(cls, value: dict[str, Any]) -> dict[str, Any]:
        PostprocessSettings.from_manifest(value)
        return value

    @field_validator("notes")
    @classmethod
    def _known_notes(cls, value: dict[str, str]) -> dict[str, str]:
        _known("bundle.notes", value, ALL_REGIONS)
        return value

    @field_validator("members", "derived", mode="before")
    @classmethod
    def _as_tuple(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value


class GridCell(_Table):
    """One row of a paper's table: what to change, and the paper's own figures (column title → as printed)."""

    label: str
    set: dict[str, Any] = {}
    paper: dict[str, str] = {}


class GridTable(_Table):
    """An ablation: the same recipe with the changes of each cell. ``columns`` are what is compared, in order.

    ``ensemble`` asks for one row more, the average of all cells' probabilities, with the paper's figures for it.
    """

    title: str
    columns: tuple[str, ...]
    ensemble: dict[str, str] = {}
    cells: tuple[GridCell, ...] = Field(min_length=1)

    @field_validator("columns", "cells", mode="before")
    @classmethod
    def _as_tuple(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value


class Recipe(_Table):
    """A checked recipe.

    ``preprocess`` is the ordered list that the bundle's member will carry: see
    :mod:`worker.film.preprocess`; its last shape is (channels, height, width).
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")
    description: str
    task: Literal["segmentation", "classification"]
    paper: Literal["", "holste", "pediatric_classifier"] = ""
    network: NetworkTable
    preprocess: tuple[dict[str, Any], ...]
    data: DataTable
    augmentation: AugmentationTable = AugmentationTable()
    loss: LossTable
    optimiser: OptimiserTable = OptimiserTable()
    schedule: ScheduleTable = ScheduleTable()
    training: TrainingTable
    bundle: BundleTable | None = None
    grid: GridTable | None = None

    @field_validator("preprocess", mode="before")
    @classmethod
    def _as_tuple(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        channels, height, width = self.input_shape
        try:
            preprocess.check(self.preprocess, channels, height, width)
        except BundleError as error:
            raise ValueError(str(error)) from None
        varied = self.augmentation.live != LiveTable() or self.augmentation.saved.copies > 0
        if varied and any(step["step"] == "standardise" for step in self.preprocess):
            raise ValueError(
                "augmentation needs grey values from 0 to 1, which the standardise step of preprocess takes away: "
                "leave that step out (batch normalisation does its work), or give no augmentation"
            )
        if self.task == "segmentation":
            _known("data.regions", self.data.regions, ALL_REGIONS)
            if len(self.data.regions) < 2 or self.data.regions[0] != "background":
                raise ValueError("data.regions must start with background and name at least one region more")
            if self.loss.evidence:
                raise ValueError("loss.evidence is for classifiers: a segmentation network has no activation maps")
        else:
            if self.loss.evidence and self.loss.guidance:
                raise ValueError("loss.evidence and loss.guidance both say where to look: give one of them")
            _known("data.findings", self.data.findings, KNOWN_FINDINGS)
            if not self.data.findings:
                raise ValueError("data.findings must name at least one finding")
        monitors = {"segmentation": ("mean_dice", "lung_dice", "loss"), "classification": ("mean_auroc", "loss")}
        if self.training.monitor not in monitors[self.task]:
            raise ValueError(f"training.monitor of a {self.task} recipe is {' or '.join(monitors[self.task])}")
        return self

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """What the network takes: (channels, height, width)."""
        channels, size = 1, (0, 0)
        for step in self.preprocess:
            if step.get("step") == "channels":
                channels = step.get("count", 1)
            elif step.get("step") == "resize":
                size = (step.get("height", 0), step.get("width", 0))
        return channels, *size

    @property
    def region_definitions(self) -> tuple[RegionDefinition, ...]:
        """The regions with label values 0, 1, 2, ... in the recipe's order."""
        known = (REGION_BY_NAME[name] for name in self.data.regions)
        return tuple(RegionDefinition(i, r.name, r.title, r.colour) for i, r in enumerate(known))

    @property
    def drawn_regions(self) -> tuple[str, ...] | None:
        """What a film's label map names: the regions to learn, the lungs for ``loss.evidence``, or None for no map."""
        if self.task == "segmentation":
            return self.data.regions
        return (Region.BACKGROUND.value, *(lung.value for lung in LUNGS)) if self.loss.evidence else None

    @property
    def outputs(self) -> int:
        """Channels or logits of the network: regions or findings."""
        return len(self.data.regions if self.task == "segmentation" else self.data.findings)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, every default written out: what a run folder keeps as ``recipe.toml``."""
        return self.model_dump(mode="json", exclude_none=True)


#: All eight, in the order of their label values.
ALL_REGIONS: tuple[str, ...] = tuple(str(region.name) for region in HOLSTE_REGIONS)

#: The ten pediatric findings, and what a pre-training on adult films learns instead.
KNOWN_FINDINGS: tuple[str, ...] = tuple(dict.fromkeys([*(str(finding) for finding in Finding), *CHEXPERT_OBSERVATIONS]))


def recipe_names() -> list[str]:
    """The recipes that come with the trainer."""
    return sorted(path.stem for path in RECIPES.glob("*.toml"))


def load_recipe(reference: str | Path, changes: Mapping[str, Any] | None = None) -> Recipe:
    """Read a recipe.

    Parameters
    ----------
    reference
        The name of a recipe that comes with the trainer, or a path to a TOML file.
    changes
        Dotted key → value, as ``--set training.epochs=2`` and a grid's cells give them.

    Raises
    ------
    RecipeError
        No such recipe (the nearest is named), not valid TOML, an unknown key, a wrong value.
    """
    path = find_recipe(reference)
    table = _read(path, ())
    table.setdefault("name", path.stem)
    for key, value in (changes or {}).items():
        _set(table, key, value)
    return check_recipe(table, str(path.name))


def check_recipe(table: Mapping[str, Any], where: str) -> Recipe:
    """A recipe from plain values; ``where`` names its file in errors."""
    try:
        return Recipe.model_validate(dict(table))
    except ValidationError as error:
        raise RecipeError(f"Recipe {where}: {_sentence(error)}") from None


def find_recipe(reference: str | Path) -> Path:
    """The file of a recipe by name or path."""
    path = Path(reference)
    if path.suffix == ".toml":
        if not path.is_file():
            raise RecipeError(f"There is no recipe file {path}.")
        return path
    packaged = RECIPES / f"{reference}.toml"
    if not packaged.is_file():
        raise RecipeError(f"There is no recipe {str(reference)!r}{nearest(str(reference), recipe_names())}.")
    return packaged


def nearest(name: str, known: Iterable[str]) -> str:
    """``"; did you mean 'x'?"``, or the list of what exists when nothing is near."""
    names = list(known)
    close = difflib.get_close_matches(name, names, 1, 0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(names) or 'none'}"


def _read(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    if path in seen:
        raise RecipeError(f"Recipe {path.name} starts from itself: correct its base.")
    try:
        table = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RecipeError(f"Recipe {path.name} cannot be read: {error}.") from None
    base = table.pop("base", None)
    if base is None:
        return table
    beside = path.parent / f"{base}.toml"
    below = _read(beside if beside.is_file() else find_recipe(str(base)), (*seen, path))
    for alone in ("name", "grid", "bundle"):  # what a recipe is called, compares or ships is not inherited
        below.pop(alone, None)
    return _merge(below, table)


#: Tables whose options belong to the chosen ``name``: another name starts without them.
_CHOICES = frozenset({"network", "loss"})


def _merge(below: dict[str, Any], above: Mapping[str, Any], inside: str = "") -> dict[str, Any]:
    merged = dict(below)
    if inside in _CHOICES and "name" in above and above["name"] != below.get("name"):
        merged.pop("options", None)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = _merge(old, value, key) if isinstance(old, dict) and isinstance(value, Mapping) else value
    return merged


def _set(table: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for depth, parent in enumerate(parents):
        child = table.setdefault(parent, {})
        if not isinstance(child, dict):
            raise RecipeError(f"{key!r} cannot be set: {'.'.join(parents[: depth + 1])} is not a table.")
        table[parent] = table = dict(child)
    if parents and parents[-1] in _CHOICES and last == "name" and table.get("name") != value:
        table.pop("options", None)
    table[last] = value


def _sentence(error: ValidationError) -> str:
    parts = []
    for problem in error.errors(include_url=False, include_context=False):
        place = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            parts.append(f"there is no key {place}{nearest(str(problem['loc'][-1]), _keys_at(problem['loc'][:-1]))}")
        elif problem["type"] == "missing":
            parts.append(f"{place} is missing")
        else:
            words = problem["msg"].removeprefix("Value error, ").rstrip(".")
            parts.append(f"{place}: {words[0].lower()}{words[1:]}" if place else words)
    return "; ".join(parts).rstrip(".?") + ("?" if parts[-1].endswith("?") else ".")


def _keys_at(location: tuple[int | str, ...]) -> list[str]:
    """The keys of the table at ``location``."""
    model: Any = Recipe
    for part in location:
        if isinstance(part, int):
            continue
        annotation = model.model_fields[part].annotation
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        model = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)
        if model is None:
            return []
    return list(model.model_fields)


def _known(what: str, names: Iterable[str], known: Iterable[str]) -> None:
    for name in names:
        if name not in known:
            raise ValueError(f"{what} has no {name!r}{nearest(name, known)}")
