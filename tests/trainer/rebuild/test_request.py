from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_recipes import FINDINGS, REGIONS, write_recipe

from trainer.errors import DataError, RecipeError
from trainer.rebuild.request import make_request
from worker.monitor.labels import ReaderPolicy

MakeRequest = Any


def test_held_out_patients_are_kept_apart_whatever_the_recipe_says(ask: MakeRequest, tmp_path: Path) -> None:
    member = write_recipe(tmp_path, "member", FINDINGS)
    request = ask(REGIONS + f'members = ["{member}"]\n[data.split]\nheld_out = false\n')
    assert [recipe.name for recipe in request.recipes] == ["tiny-other", "member"]
    assert all(recipe.data.split.held_out for recipe in request.recipes)
    assert request.bundle_name == "tiny-regions"


def test_equal_requests_are_equal_as_they_are_stored(ask: MakeRequest) -> None:
    assert json.loads(json.dumps(ask().to_json())) == ask().to_json()
    others = [ask(int8=True), ask(readers=ReaderPolicy.ANY), ask(from_database=True), ask(FINDINGS.replace("3", "4"))]
    assert all(other.to_json() != ask().to_json() for other in others)


def test_places_are_absolute(ask: MakeRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    request = ask(data="films", out=Path("here"))
    assert (request.data, request.out) == (str(tmp_path / "films"), str(tmp_path / "here"))
    assert ask().data == "phantoms"


@pytest.mark.parametrize(
    ("recipe", "options", "error", "said"),
    [
        ("carina-findings", {}, DataError, "No films are asked for"),
        ("carina-regions", {"from_database": True}, DataError, "no corrected label maps in this version"),
        ("holste-table-2", {"data": "phantoms"}, RecipeError, "rebuild from one of its cells"),
        ("carina-finding", {"data": "phantoms"}, RecipeError, "did you mean 'carina-findings'"),
    ],
)
def test_what_cannot_be_rebuilt_is_refused(
    recipe: str, options: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        make_request(recipe, **options)


def test_regions_may_be_learned_from_disk_beside_the_database() -> None:
    assert make_request("carina-regions", data="phantoms", from_database=True).from_database
