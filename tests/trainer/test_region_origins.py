from __future__ import annotations

import pytest

pytest.importorskip("pydantic")

from handmade_runs import make_recipe

from trainer.recipe import BundleTable, Recipe
from trainer.region_origins import exact, regions_of, with_derived


@pytest.fixture
def recipe() -> Recipe:
    regions = ["background", "left_lung", "right_lung", "spine"]
    return make_recipe("segmentation", data={"regions": regions})


def derived(regions: object) -> set[str]:
    return {region.name for region in regions if region.origin == "derived"}


def test_without_a_table_all_is_annotated(recipe: Recipe) -> None:
    assert [(r.value, r.name, r.origin) for r in regions_of(recipe, None)] == [
        (0, "background", "annotated"),
        (1, "left_lung", "annotated"),
        (2, "right_lung", "annotated"),
        (3, "spine", "annotated"),
    ]


def test_the_table_and_the_data_derive_and_background_ends_where_that_begins(recipe: Recipe) -> None:
    table = BundleTable(name="b", derived=("spine",))
    assert derived(regions_of(recipe, table)) == {"spine", "background"}
    assert derived(regions_of(recipe, table, ["left_lung"])) == {"spine", "left_lung", "background"}


def test_what_the_bundle_does_not_know_makes_nothing_derived(recipe: Recipe) -> None:
    assert derived(regions_of(recipe, BundleTable(name="b", derived=("carina",)), ["mediastinum"])) == set()


def test_an_origin_of_its_own_stays_for_the_others(recipe: Recipe) -> None:
    regions = regions_of(recipe, BundleTable(name="b", origin="exact"))
    assert {r.origin for r in regions} == {"exact"}
    marked = with_derived(regions, ["right_lung"])
    assert [r.origin for r in marked] == ["derived", "exact", "derived", "exact"]
    assert {r.origin for r in exact(marked)} == {"exact"}


def test_what_a_region_means_here_is_noted(recipe: Recipe) -> None:
    regions = regions_of(recipe, BundleTable(name="b", notes={"spine": "a straight band"}))
    assert {r.name: r.note for r in regions if r.note} == {"spine": "a straight band"}


def test_notes_are_about_regions_there_are() -> None:
    with pytest.raises(ValueError, match="did you mean 'spine'"):
        BundleTable(name="b", notes={"spline": "a straight band"})
