"""Recipes: everything that decides what comes out of a training, in one TOML file.

A recipe may start from another (``base``) and say only what differs. Keys nobody knows are
refused with the nearest one that exists: a misspelt setting must not silently train
something else. The networks', losses' and augmentations' own options are checked where
they are built, by the same rule. The tables and their keys are in :mod:`trainer.recipe_tables`.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from schema.bundle import BundleError
from schema.findings import CHEXPERT_OBSERVATIONS, Finding
from schema.regions import LUNGS, REGION_BY_NAME, Region, RegionDefinition
from trainer.errors import RecipeError
from trainer.recipe_tables import (
    KNOWN_REGIONS,
    AugmentationTable,
    BundleTable,
    DataTable,
    GridCell,
    GridEnsemble,
    GridTable,
    LiveTable,
    LossTable,
    NetworkTable,
    OptimiserTable,
    SavedCopiesTable,
    ScheduleTable,
    SearchRange,
    SearchTable,
    SignificanceTable,
    SplitTable,
    Table,
    TrainingTable,
    nearest,
    refuse_unknown,
)
from trainer.region_losses import REGION_LOSSES
from worker.film import preprocess

__all__ = [
    "KNOWN_FINDINGS",
    "KNOWN_REGIONS",
    "RECIPES",
    "AugmentationTable",
    "BundleTable",
    "DataTable",
    "GridCell",
    "GridEnsemble",
    "GridTable",
    "LiveTable",
    "LossTable",
    "NetworkTable",
    "OptimiserTable",
    "Recipe",
    "SavedCopiesTable",
    "ScheduleTable",
    "SearchRange",
    "SearchTable",
    "SignificanceTable",
    "SplitTable",
    "TrainingTable",
    "check_recipe",
    "find_recipe",
    "load_recipe",
    "nearest",
    "recipe_names",
]

RECIPES = Path(__file__).parent / "recipes"


class Recipe(Table):
    """A checked recipe.

    ``preprocess`` is the ordered list that the bundle's member will carry: see
    :mod:`worker.film.preprocess`; its last shape is (channels, height, width). ``{ step = "standardise", from =
    "training" }`` stands for the mean and the standard deviation of all pixels of the training films after the steps
    before it (Novikov et al., section III-A); a training puts the numbers in their place (:meth:`measured`). After
    ``standardise`` only ``channels`` may follow. Films are varied before it, wherever it takes its numbers from.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")
    description: str
    task: Literal["segmentation", "classification"]
    paper: Literal["", "holste", "novikov", "maga", "wang", "pediatric_classifier"] = ""
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
    search: SearchTable | None = None

    @field_validator("preprocess", mode="before")
    @classmethod
    def _as_tuple(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        channels, height, width = self.input_shape
        try:
            preprocess.check(_with_statistics(self.preprocess, 0.0, 1.0), channels, height, width)
        except BundleError as error:
            raise ValueError(str(error)) from None
        names = [step["step"] for step in self.preprocess]
        if "standardise" in names and set(names[names.index("standardise") + 1 :]) - {"channels"}:
            raise ValueError(
                "preprocess: after standardise only channels may follow, because films are varied before it on the "
                "network's grid: put it behind the other steps"
            )
        self._check_channels()
        if self.task == "segmentation":
            refuse_unknown("data.regions", self.data.regions, KNOWN_REGIONS)
            if len(self.data.regions) < 2 or self.data.regions[0] != "background":
                raise ValueError("data.regions must start with background and name at least one region more")
            if self.loss.evidence:
                raise ValueError("loss.evidence is for classifiers: a segmentation network has no activation maps")
        else:
            if self.training.progression:
                raise ValueError("training.progression keeps pictures of regions: set it to false")
            if self.loss.evidence and self.loss.guidance:
                raise ValueError("loss.evidence and loss.guidance both say where to look: give one of them")
            refuse_unknown("data.findings", self.data.findings, KNOWN_FINDINGS)
            if not self.data.findings:
                raise ValueError("data.findings must name at least one finding")
        monitors = {"segmentation": ("mean_dice", "lung_dice", "loss"), "classification": ("mean_auroc", "loss")}
        if self.training.monitor not in monitors[self.task]:
            raise ValueError(f"training.monitor of a {self.task} recipe is {' or '.join(monitors[self.task])}")
        return self

    def _check_channels(self) -> None:
        """What activation, loss and truth ask of each other."""
        mixed, overlapping = self.augmentation.mixup > 0, self.data.overlapping
        usual = NetworkTable.model_fields["threshold"].default
        if self.task == "classification":
            for key, given in (
                ("network.activation", self.network.activation != "softmax"),
                ("network.threshold", self.network.threshold != usual),
                ("augmentation.mixup", mixed),
                ("data.overlapping", overlapping),
            ):
                if given:
                    raise ValueError(f"{key} is for segmentation: leave it out of a recipe that learns findings")
            return
        if self.network.activation == "softmax" and self.network.threshold != usual:
            raise ValueError(
                "network.threshold is asked where network.activation is 'sigmoid'; softmax takes the highest "
                f"probability: leave it out, or at {usual}"
            )
        kind = REGION_LOSSES.get(self.loss.name)
        if kind and self.network.activation not in kind.activations:
            fitting = [name for name, other in REGION_LOSSES.items() if self.network.activation in other.activations]
            raise ValueError(
                f"loss.name: {self.loss.name} is not for network.activation = {self.network.activation!r}: "
                f"choose {' or '.join(kind.activations)} there, or one of the losses {', '.join(fitting)}"
            )
        for key, given in (("augmentation.mixup", mixed), ("data.overlapping", overlapping)):
            if not given:
                continue
            if kind and not kind.soft:
                fitting = [name for name, other in REGION_LOSSES.items() if other.soft]
                raise ValueError(
                    f"{key} gives pixels more than one region, and the loss {self.loss.name} takes one for each pixel: "
                    f"choose one of {', '.join(fitting)}"
                )
            if self.loss.pixel_weights:
                raise ValueError(f"loss.pixel_weights needs one region for each pixel: leave it or {key} out")
        if overlapping and len(self.data.regions) > 8:
            raise ValueError("data.overlapping keeps seven regions beside the background at most: leave some out")
        if overlapping and self.network.activation == "softmax":
            raise ValueError(
                "data.overlapping lets a pixel belong to several regions, which softmax cannot answer: set "
                "network.activation to 'sigmoid'"
            )

    @property
    def needs_statistics(self) -> bool:
        """Whether the mean and standard deviation of the training films are still to be put into ``preprocess``."""
        return any("from" in step for step in self.preprocess)

    @property
    def before_statistics(self) -> Recipe:
        """The same without the ``standardise`` step: what the statistics are taken of."""
        steps = tuple(step for step in self.preprocess if step["step"] != "standardise")
        return self.model_copy(update={"preprocess": steps})

    def measured(self, mean: float, std: float) -> Recipe:
        """The recipe with these numbers where it says ``from = "training"``."""
        return self.model_copy(update={"preprocess": _with_statistics(self.preprocess, mean, std)})

    @property
    def standardisation(self) -> tuple[float, float]:
        """Mean and standard deviation that pictures are standardised by; (0, 1) where they are not."""
        for step in self.preprocess:
            if step["step"] == "standardise":
                return float(step["mean"]), float(step["std"])
        return 0.0, 1.0

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
    def has_background(self) -> bool:
        """Whether a segmentation network has a channel for the background.

        Under ``sigmoid`` only where the loss asks for it: Novikov's cross-entropy, section III-C.
        """
        if self.network.activation == "softmax":
            return True
        kind = REGION_LOSSES.get(self.loss.name)
        return kind is not None and kind.background

    @property
    def outputs(self) -> int:
        """Channels or logits of the network: regions, with or without the background, or findings."""
        if self.task == "classification":
            return len(self.data.findings)
        return len(self.data.regions) - (not self.has_background)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, every default written out: what a run folder keeps as ``recipe.toml``."""
        return self.model_dump(mode="json", exclude_none=True)


#: The ten pediatric findings, and what a pre-training on adult films learns instead.
KNOWN_FINDINGS: tuple[str, ...] = tuple(dict.fromkeys([*(str(finding) for finding in Finding), *CHEXPERT_OBSERVATIONS]))


def _with_statistics(steps: tuple[dict[str, Any], ...], mean: float, std: float) -> tuple[dict[str, Any], ...]:
    """The steps with these numbers in place of ``from = "training"``."""
    found = []
    for step in steps:
        if step.get("step") == "standardise" and "from" in step:
            if step != {"step": "standardise", "from": "training"}:
                raise ValueError('preprocess: standardise takes mean and std, or from = "training" and nothing else')
            found.append({"step": "standardise", "mean": mean, "std": std})
        else:
            found.append(step)
    return tuple(found)


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
    for alone in ("name", "grid", "search", "bundle"):  # what a recipe is called, compares or ships is not inherited
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
