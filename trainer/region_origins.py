"""How the truth of a bundle's regions was made: annotated, derived by rule, or exact.

The recipe's bundle table says so, its data set may have derived more, and phantoms are exact whatever a recipe says.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from schema.bundle import BundleRegion
from schema.regions import Region
from trainer.recipe import BundleTable, Recipe


def regions_of(recipe: Recipe, table: BundleTable | None, derived: Collection[str] = ()) -> tuple[BundleRegion, ...]:
    """A recipe's regions; ``derived`` names those that count as derived beside what ``table`` says."""
    table = table or BundleTable(name=recipe.name)
    regions = [
        BundleRegion(
            region.value, region.name, region.title, region.colour, table.origin, table.notes.get(region.name, "")
        )
        for region in recipe.region_definitions
    ]
    return with_derived(regions, {*table.derived, *derived})


def exact(regions: Sequence[BundleRegion]) -> tuple[BundleRegion, ...]:
    """The regions where every film is a phantom."""
    return tuple(replace(region, origin="exact") for region in regions)


def with_derived(regions: Sequence[BundleRegion], derived: Collection[str]) -> tuple[BundleRegion, ...]:
    """The regions with those named derived, and with them background: it ends where they begin."""
    marked = {region.name for region in regions} & {*derived}
    if marked:
        marked.add(str(Region.BACKGROUND))
    return tuple(replace(region, origin="derived") if region.name in marked else region for region in regions)
