from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from finished_runs import NETWORKS, run_recipe

from schema.bundle import BundleError
from trainer.errors import RunError
from trainer.export.contents import bundle_table, contents_of, recipe_without_places
from trainer.recipe import BundleTable
from trainer.training.run_folder import Run

MakeRun = Callable[..., Run]
EIGHT = list(run_recipe("segmentation").data.regions)
SIGMOID = {
    "network": {**NETWORKS["segmentation"], "activation": "sigmoid", "threshold": 0.5},
    "loss": {"name": "class_frequency_dice"},
}


def test_the_first_table_names_the_bundle_and_the_segmentation_tells_its_regions(untrained: MakeRun) -> None:
    finder = untrained("f", "classification", {"bundle": {"name": "both", "version": "4", "segmentation": "packaged"}})
    masks = untrained("m", "segmentation", {"bundle": {"name": "masks", "derived": ["spine"]}})
    assert bundle_table([finder, masks]) == BundleTable(name="both", version="4", derived=("spine",))
    assert bundle_table([finder]).segmentation == "packaged"
    named = bundle_table([finder, masks], "other", "5")
    assert (named.name, named.version) == ("other", "5")


def test_without_any_table_the_recipe_lends_its_name(masks: Run) -> None:
    assert bundle_table([masks]) == BundleTable(name="tiny-segmentation")


class TestOrigins:
    def origins(self, run: Run, bundle: BundleTable) -> dict[str, str]:
        return {region.name: region.origin for region in contents_of([run], bundle).regions(bundle)}

    def test_are_those_of_the_table(self, masks: Run) -> None:
        assert set(self.origins(masks, BundleTable(name="b")).values()) == {"annotated"}
        found = self.origins(masks, BundleTable(name="b", derived=("spine", "mediastinum")))
        assert {name for name, origin in found.items() if origin == "derived"} == {
            "spine",
            "mediastinum",
            "background",
        }

    def test_what_the_data_set_derived_is_derived(self, untrained: MakeRun) -> None:
        run = untrained("m", "segmentation", origin={"derived from the lungs by geometry": "spine, carina"})
        found = self.origins(run, BundleTable(name="b"))
        assert {name for name, origin in found.items() if origin == "derived"} == {"spine", "carina", "background"}

    def test_phantoms_are_exact_whatever_is_said(self, untrained: MakeRun) -> None:
        run = untrained("m", "segmentation", data="phantoms")
        assert set(self.origins(run, BundleTable(name="b", origin="annotated")).values()) == {"exact"}


def test_several_segmentations_are_an_ensemble(masks: Run, untrained: MakeRun) -> None:
    derived = {"bundle": {"name": "second", "notes": {"spine": "of the second"}}}
    other = untrained("m", "segmentation", derived, origin={"derived from the lungs": "spine"})
    table = bundle_table([masks, other])
    assert (table.name, table.notes) == ("second", {})
    contents = contents_of([masks, other], table)
    assert contents.runs == (masks, other)
    origins = {region.name: region.origin for region in contents.regions(table)}
    assert (origins["spine"], origins["left_lung"]) == ("derived", "annotated")


class TestRefusals:
    def test_no_segmentation(self, finders: tuple[Run, Run]) -> None:
        with pytest.raises(RunError, match=r"needs a segmentation network: .*'packaged'"):
            contents_of(finders, BundleTable(name="b"))

    @pytest.mark.parametrize(
        ("changes", "told"),
        [
            ({"data": {"regions": ["background", "left_lung"]}}, "learned background, left_lung: "),
            ({"preprocess": [{"step": "resize", "height": 96, "width": 64}]}, "learned masks of 96 x 64: "),
            ({"data": {"regions": EIGHT, "overlapping": True}, **SIGMOID}, "learned regions that overlap: "),
            (SIGMOID, "learned sigmoid with the threshold 0.5: "),
        ],
    )
    def test_masks_that_cannot_be_averaged(self, masks: Run, changes: dict[str, Any], told: str) -> None:
        other = replace(masks, recipe=run_recipe("segmentation", **changes))
        with pytest.raises(RunError, match=told):
            contents_of([masks, other], BundleTable(name="b"))

    def test_a_segmentation_and_another_one_to_take(self, masks: Run) -> None:
        with pytest.raises(RunError, match="leave one of the two out"):
            contents_of([masks], BundleTable(name="b", segmentation="packaged"))

    def test_other_findings(self, finders: tuple[Run, Run], untrained: MakeRun) -> None:
        other = untrained("o", "classification", {"data": {"findings": ["pneumonia", "no_finding"]}})
        with pytest.raises(RunError, match="the same findings in the same order"):
            contents_of([finders[0], other], BundleTable(name="b", segmentation="packaged"))

    def test_a_bundle_that_is_none(self, finders: tuple[Run, Run], tmp_path: Path) -> None:
        with pytest.raises(BundleError, match="is not a bundle"):
            contents_of(finders, BundleTable(name="b", segmentation=str(tmp_path)))


def test_a_recipe_loses_its_places() -> None:
    recipe = run_recipe(
        "segmentation",
        network={"name": "holste_unet", "checkpoint": "/home/ann/weights/first.pt"},
        bundle={"name": "b", "segmentation": "/srv/bundles/chest-1", "members": ["/home/ann/own.toml", "resnet101"]},
        data={"regions": EIGHT},
    )
    table = recipe_without_places(recipe)
    assert "/" not in json.dumps(table)
    assert table["network"]["checkpoint"] == "first.pt"
    assert table["bundle"]["segmentation"] == "chest-1"
    assert table["bundle"]["members"] == ["own", "resnet101"]
    assert table["preprocess"] == [dict(step) for step in recipe.preprocess]


def test_the_digest_of_one_run_is_its_own_and_of_several_depends_on_all(
    masks: Run, finders: tuple[Run, Run], untrained: MakeRun
) -> None:
    table = BundleTable(name="b")
    assert contents_of([masks], table).data_digest == masks.data["digest"]
    both = contents_of([masks, finders[0]], table).data_digest
    other = untrained("f", "classification", names=[f"other/{index}" for index in range(48)])
    assert len({both, contents_of([masks, other], table).data_digest, masks.data["digest"]}) == 3
