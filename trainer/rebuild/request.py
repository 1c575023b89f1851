"""What is to be rebuilt, and from which films."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.data.description import PHANTOMS
from trainer.errors import DataError, RecipeError
from trainer.recipe import Recipe, load_recipe
from worker.monitor.labels import ReaderPolicy

#: Whatever a recipe says of its split, patients who are held out judge and are never learned from.
_HELD_OUT = {"data.split.held_out": True}


@dataclass(frozen=True)
class Request:
    """Two equal requests ask for the same thing: the second goes on where the first stopped.

    Attributes
    ----------
    recipes
        What is trained: the recipe, then the members of its bundle; all of them keep held-out patients apart.
    data
        ``phantoms``, or the absolute path of a directory or description; ``""`` for none.
    layout
        Of that directory: see :func:`trainer.data.description.load_dataset`.
    from_database
        Whether films with labels are taken from the database.
    readers
        How several readers' labels become one.
    int8
        Whether 8-bit twins are written.
    out
        The folder that was asked for; ``""`` for one in the home folder.
    """

    recipes: tuple[Recipe, ...]
    data: str
    layout: str
    from_database: bool
    readers: ReaderPolicy
    int8: bool = False
    out: str = ""

    @property
    def recipe(self) -> Recipe:
        """What gives the bundle its name."""
        return self.recipes[0]

    @property
    def bundle_name(self) -> str:
        """What the bundle will be called."""
        return self.recipe.bundle.name if self.recipe.bundle else self.recipe.name

    def to_json(self) -> dict[str, Any]:
        """As plain values, every setting of the recipes among them."""
        return {
            "recipes": [recipe.to_dict() for recipe in self.recipes],
            "data": self.data,
            "layout": self.layout,
            "from_database": self.from_database,
            "readers": str(self.readers),
            "int8": self.int8,
            "out": self.out,
        }


def make_request(
    recipe: str | Path,
    *,
    data: str = "",
    layout: str = "",
    from_database: bool = False,
    readers: ReaderPolicy = ReaderPolicy.MAJORITY,
    int8: bool = False,
    out: Path | None = None,
) -> Request:
    """Read the recipe and its members' and see that they could be trained on such films.

    Raises
    ------
    RecipeError
        There is no such recipe, it is wrong, or it is a grid.
    DataError
        No films are asked for, or regions are to be learned from the database alone.
    """
    first = load_recipe(recipe, _HELD_OUT)
    if first.grid:
        raise RecipeError(f"Recipe {first.name} is a grid of several trainings: rebuild from one of its cells.")
    members = first.bundle.members if first.bundle else ()
    recipes = (first, *(load_recipe(member, _HELD_OUT) for member in members))
    if not data and not from_database:
        raise DataError("No films are asked for: name a data set, ask for those of the database, or both.")
    masks = [each.name for each in recipes if each.task == "segmentation"]
    if masks and not data:
        raise DataError(
            f"Recipe {masks[0]} learns regions, and the database holds no corrected label maps in this version, only "
            "labels of findings: add --data with a data set that has label maps."
        )
    if data and data != PHANTOMS:
        data = _absolute(data)
    return Request(recipes, data, layout, from_database, readers, int8, _absolute(out) if out else "")


def _absolute(path: str | Path) -> str:
    return str(Path(path).expanduser().absolute())
