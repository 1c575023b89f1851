"""The tables of a recipe: every key, what it means, and its range.

:mod:`trainer.recipe` puts them together and reads the files.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from schema.regions import REGION_BY_NAME, REGION_SETS
from worker.findings.postprocess import PostprocessSettings

#: Every region that a recipe can name.
KNOWN_REGIONS: tuple[str, ...] = tuple(str(name) for name in REGION_BY_NAME)


def nearest(name: str, known: Iterable[str]) -> str:
    """``"; did you mean 'x'?"``, or the list of what exists when nothing is near."""
    names = list(known)
    close = difflib.get_close_matches(name, names, 1, 0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(names) or 'none'}"


def refuse_unknown(what: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Raise ValueError, with the nearest that exists, for the first of ``names`` that is not ``known``."""
    for name in names:
        if name not in known:
            raise ValueError(f"{what} has no {name!r}{nearest(name, known)}")


class Table(BaseModel):
    """Immutable; refuses keys and types that are not its own."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class NetworkTable(Table):
    """Which network; ``options`` are its own, ``checkpoint`` a local file of weights to start from.

    ``activation`` says how a segmentation network's channels become probabilities. ``softmax``: a channel for each
    region, background included, and every pixel belongs to one of them. ``sigmoid`` (Novikov et al., eq. 6; Wang et
    al.): a channel for each region but the background, each for itself, and a pixel belongs to every region whose
    probability is above ``threshold``. Novikov's eq. 9 asks for 0.75; Wang et al. print none, 0.5 is usual. What that
    means for a label map is in :mod:`trainer.networks.heads`.
    """

    name: str
    options: dict[str, Any] = {}
    checkpoint: str = ""
    activation: Literal["softmax", "sigmoid"] = "softmax"
    threshold: float = Field(0.75, gt=0, lt=1)


class LossTable(Table):
    """Which loss; ``pixel_weights`` is one of Holste's maps, ``guidance`` weighs a place head's own loss.

    ``evidence`` weighs the share of a classifier's activation maps that lies outside the lungs, on the films whose
    lungs are known: what decides shall be seen in the lungs, not beside them. The network itself is never shown them.
    """

    name: str
    options: dict[str, Any] = {}
    pixel_weights: Literal["", "w1", "w2", "w3"] = ""
    guidance: float = Field(0.0, ge=0)
    evidence: float = Field(0.0, ge=0)


class SplitTable(Table):
    """Shares of the patients; ``folds`` > 1 asks for fold ``fold`` (0-based) of a cross-validation instead.

    ``own_folds`` takes the folds that the data set itself has (SCR's odd and even films) instead of dealing patients
    out: ``folds`` says how many these are. ``held_out`` also keeps the patients out whose key the database marks as
    held out (:func:`schema.keys.is_held_out`): they become the test part.
    """

    train: float = Field(0.70, gt=0, le=1)
    validation: float = Field(0.15, ge=0, lt=1)
    test: float = Field(0.15, ge=0, lt=1)
    folds: int = Field(0, ge=0)
    fold: int = Field(0, ge=0)
    own_folds: bool = False
    held_out: bool = False
    seed: int = 1

    @model_validator(mode="after")
    def _whole(self) -> SplitTable:
        if self.folds == 1 or (self.folds and self.fold >= self.folds):
            raise ValueError("folds must be 0 or at least 2, and fold below it")
        if self.own_folds and not self.folds:
            raise ValueError("own_folds needs folds: how many folds the data set has")
        if abs(self.train + self.validation + self.test - 1) > 1e-6:
            raise ValueError("train, validation and test must add up to 1")
        return self


class DataTable(Table):
    """What a film's truth is made of; where the films lie is the command line's business.

    ``regions`` are names of label values 0, 1, 2, ... in this order, or the name of one of
    :data:`schema.regions.REGION_SETS`. Where a pixel can be of one region only, later ones lie over earlier ones.
    ``overlapping`` lets a pixel belong to several regions: a film's truth is then a bit field, bit r set where region r
    is, none where there is background, so there can be no more than seven regions beside that.
    ``films`` > 0 trains on that many films only, chosen by the split's seed. ``phantoms`` is how many are drawn when
    the data are phantoms, ``added_phantoms`` how many join the training part of other data.
    """

    regions: tuple[str, ...] = ()
    findings: tuple[str, ...] = ()
    overlapping: bool = False
    films: int = Field(0, ge=0)
    phantoms: int = Field(400, ge=8)
    added_phantoms: int = Field(0, ge=0)
    split: SplitTable = SplitTable()

    @field_validator("regions", mode="before")
    @classmethod
    def _of_set(cls, value: Any) -> Any:
        if isinstance(value, str):
            if value not in REGION_SETS:
                raise ValueError(f"there is no region set {value!r}{nearest(value, REGION_SETS)}")
            value = REGION_SETS[value]
        return tuple(str(name) for name in value) if isinstance(value, list | tuple) else value

    @field_validator("findings", mode="before")
    @classmethod
    def _as_tuple(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value


class LiveTable(Table):
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


class SavedCopiesTable(Table):
    """Transformed copies of each training film, made once: Holste section 2.2, or the five-fold set of Wang et al.

    ``elastic_sigma`` and ``elastic_alpha`` are pixels of the network's grid, ``rotation`` degrees. ``varied`` are
    transformations of :class:`LiveTable`, drawn once for each copy, after those.

    Wang's poster says "247 images * 5 post-augmentation" and not how. Decided: the film itself and four copies, each
    turned, moved, magnified and exposed a little, and never mirrored, because its networks are to tell left from right:
    ``copies = 4``, ``elastic_alpha = 0.0``, ``rotation = 0.0``,
    ``varied = { rotation = 10.0, shift = 0.05, scale = 0.1, gamma = 0.2 }``.
    """

    copies: int = Field(0, ge=0)
    elastic_sigma: float = Field(5.0, gt=0)
    elastic_alpha: float = Field(30.0, ge=0)
    rotation: float = Field(15.0, ge=0, le=180)
    varied: LiveTable = LiveTable()


class AugmentationTable(Table):
    """How training films are varied.

    ``mixup`` is the delta of Beta(delta, delta) with which two films and their regions are mixed (Maga, section 2.5;
    0: not at all): see :class:`trainer.training.film_dataset.FilmDataset`.
    """

    saved: SavedCopiesTable = SavedCopiesTable()
    live: LiveTable = LiveTable()
    mixup: float = Field(0.0, ge=0)


class OptimiserTable(Table):
    """``rate`` is the learning rate, the highest of a schedule that has a peak; ``momentum`` is SGD's alone."""

    name: Literal["adam", "adamw", "sgd", "rmsprop"] = "adam"
    rate: float = Field(1e-3, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0)


class ScheduleTable(Table):
    """How the learning rate moves.

    ``cosine`` warms up over ``warm_up`` (share of all steps) and falls to 0; ``triangular`` rises from
    ``rate * lowest`` to ``rate`` and back once per ``cycle`` epochs (0: once over the training).
    """

    name: Literal["constant", "cosine", "triangular"] = "constant"
    warm_up: float = Field(0.05, ge=0, lt=1)
    lowest: float = Field(0.0, ge=0, lt=1)
    cycle: int = Field(0, ge=0)


class TrainingTable(Table):
    """The loop.

    An epoch is one pass over the training films, or ``steps_per_epoch`` batches when that is given.
    ``patience`` epochs without a better ``monitor`` end the training (0: never); the weights of the
    best epoch are kept, or the last with ``keep = "last"``. ``ema`` is the decay of an averaged copy of the
    weights, which is then what is measured and kept (0: none). ``training_metrics`` measures the training films after
    each epoch too (Maga, Figure 6); ``progression`` keeps the prediction of one validation film after each (Wang).
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
    training_metrics: bool = False
    progression: bool = False


class BundleTable(Table):
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
        refuse_unknown("bundle.notes", value, KNOWN_REGIONS)
        return value

    @field_validator("members", "derived", mode="before")
    @classmethod
    def _as_tuple(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value


class GridCell(Table):
    """One row of a paper's table: what to change, and the paper's own figures (column title → as printed)."""

    label: str
    set: dict[str, Any] = {}
    paper: dict[str, str] = {}


class GridEnsemble(Table):
    """A row more: the average of the probabilities of ``cells`` (their labels; every cell where none is named)."""

    label: str = "Ensemble"
    cells: tuple[str, ...] = ()
    paper: dict[str, str] = {}

    @field_validator("cells", mode="before")
    @classmethod
    def _as_tuple(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value


class SignificanceTable(Table):
    """Wilcoxon's signed-rank test of every pair of cells on the films' Jaccards of each of ``regions``.

    ``paper`` maps ``"first / second"``, labels of cells in their order, to the paper's p-values as printed.
    """

    regions: tuple[str, ...] = Field(min_length=1)
    paper: dict[str, str] = {}

    @field_validator("regions", mode="before")
    @classmethod
    def _as_tuple(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value


class GridTable(Table):
    """An ablation: the same recipe with the changes of each cell. ``columns`` are what is compared, in order.

    Every cell is trained once; with ``folds`` once for each fold of a cross-validation, with ``repeats`` so many times,
    each on another split of the films and from other weights. ``ensembles`` are rows more, of averaged networks.
    """

    title: str
    columns: tuple[str, ...]
    folds: int = Field(0, ge=0)
    repeats: int = Field(1, ge=1)
    ensembles: tuple[GridEnsemble, ...] = ()
    significance: SignificanceTable | None = None
    cells: tuple[GridCell, ...] = Field(min_length=1)

    @field_validator("columns", "cells", "ensembles", mode="before")
    @classmethod
    def _as_tuple(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    @model_validator(mode="after")
    def _whole(self) -> GridTable:
        if self.folds == 1 or (self.folds and self.repeats > 1):
            raise ValueError("folds must be 0 or at least 2, and is not given together with repeats")
        return self


class SearchRange(Table):
    """Numbers from ``low`` to ``high``; ``log`` searches their logarithm."""

    low: float
    high: float
    log: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> SearchRange:
        if self.low >= self.high or (self.log and self.low <= 0):
            raise ValueError("low must be below high, and above 0 with log")
        return self


class SearchTable(Table):
    """A Bayesian search of settings: ``choices`` and ``ranges`` map dotted keys to what may be chosen.

    Each of ``trials`` settings is trained once for each of ``folds``; what counts is the mean over the folds of
    ``objective``, a figure of the evaluation of the films left out.
    """

    trials: int = Field(50, ge=1)
    folds: int = Field(5, ge=2)
    objective: Literal["foreground_jaccard", "foreground_dice", "mean_jaccard", "mean_dice", "mean_auroc"]
    choices: dict[str, tuple[str | bool | int | float, ...]] = {}
    ranges: dict[str, SearchRange] = {}
    seed: int = 1

    @field_validator("choices", mode="before")
    @classmethod
    def _as_tuples(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {key: tuple(each) if isinstance(each, list) else each for key, each in value.items()}

    @model_validator(mode="after")
    def _something(self) -> SearchTable:
        if not self.choices and not self.ranges:
            raise ValueError("choices or ranges must name a setting to search")
        if both := sorted({*self.choices} & {*self.ranges}):
            raise ValueError(f"{both[0]} is both in choices and in ranges")
        return self
