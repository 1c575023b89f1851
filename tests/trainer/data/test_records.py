from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from schema.findings import Finding
from trainer.data.description import load_dataset
from trainer.data.records import EIGHT, Dataset, phantom_dataset, some_of, tells
from trainer.data.splits import split
from trainer.errors import DataError
from trainer.recipe import Recipe, SplitTable

MakeRecipe = Callable[..., Recipe]


@pytest.fixture
def films(labelled_folder: Path) -> Dataset:
    return load_dataset(labelled_folder)


def test_films_without_truth_are_left_out_and_counted(films: Dataset, make_recipe: MakeRecipe) -> None:
    bare = replace(films.records[2], truth=None, truth_kind="")
    some = replace(films, records=(*films.records[:2], bare)).for_recipe(make_recipe())
    assert [record.name for record in some.records] == ["film-0", "film-1"]
    assert some.origin["left out without truth"] == "1" and some.origin["films"] == "2"
    with pytest.raises(DataError, match="No film of films has a truth"):
        replace(films, records=(bare,)).for_recipe(make_recipe())


def test_missing_truths_are_named(films: Dataset, make_recipe: MakeRecipe) -> None:
    for number in (1, 4):
        truth = films.records[number].truth
        assert truth is not None
        truth.unlink()
    with pytest.raises(DataError, match=r"2 films of films lack .*: film-1 \(.*film-1\.png\), film-4 \("):
        films.for_recipe(make_recipe())


def test_regions_a_truth_does_not_tell_are_refused(films: Dataset, make_recipe: MakeRecipe) -> None:
    records = tuple(replace(r, truth_regions=("background", "left_lung", "spine")) for r in films.records)
    told = replace(films, records=records)
    assert len(told.for_recipe(make_recipe(regions=("background", "spine"))).records) == 6
    with pytest.raises(DataError, match="tells background, left_lung, spine and no right_lung"):
        told.for_recipe(make_recipe())


def test_regions_derived_from_lungs_are_said(films: Dataset, make_recipe: MakeRecipe) -> None:
    lungs = replace(films, records=tuple(replace(r, truth_kind="lungs") for r in films.records))
    derived = "derived from the lungs by geometry"
    assert derived not in lungs.for_recipe(make_recipe()).origin
    assert lungs.for_recipe(make_recipe(regions=("background", "left_lung", "carina"))).origin[derived] == "carina"


def test_films_that_say_nothing_of_the_findings_are_left_out(films: Dataset, make_recipe: MakeRecipe) -> None:
    said = ({"pneumonia": True}, {"pneumonia": None}, {"bronchitis": False}, {})
    records = tuple(replace(r, findings=known) for r, known in zip(films.records, said, strict=False))
    known = replace(films, records=records)
    assert [r.name for r in known.for_recipe(make_recipe(findings=("pneumonia",))).records] == ["film-0"]
    both = known.for_recipe(make_recipe(findings=("pneumonia", "bronchitis")))
    assert [r.name for r in both.records] == ["film-0", "film-2"]
    with pytest.raises(DataError, match=r"says anything about bronchiolitis.*known are bronchitis, pneumonia"):
        known.for_recipe(make_recipe(findings=("pneumonia", "bronchiolitis")))


def test_phantoms_are_as_many_as_the_recipe_wants(make_recipe: MakeRecipe) -> None:
    drawn = phantom_dataset(8).for_recipe(make_recipe(regions=EIGHT, phantoms=50))
    assert len(drawn.records) == 50 and drawn.root is None
    chests = phantom_dataset(8).for_recipe(make_recipe(findings=("pneumonia", "no_finding"), phantoms=50))
    assert 30 < len(chests.records) < 50
    assert all(record.findings for record in chests.records)
    assert drawn.records[:50] == phantom_dataset(60).records[:50]


def test_phantoms_know_two_findings(make_recipe: MakeRecipe) -> None:
    with pytest.raises(DataError, match="phantoms says anything about bronchitis"):
        phantom_dataset(20).for_recipe(make_recipe(findings=("pneumonia", Finding.BRONCHITIS)))


def test_added_phantoms_are_only_trained_on(films: Dataset, make_recipe: MakeRecipe) -> None:
    mixed = films.for_recipe(make_recipe(added_phantoms=40))
    assert len(mixed.records) == 46
    for held_out in (False, True):
        chosen = split(mixed.records, SplitTable(train=0.4, validation=0.3, test=0.3, held_out=held_out, seed=3))
        assert {index for index in range(46) if index >= 6} <= set(chosen.train)
        assert chosen.validation and chosen.test


def test_a_list_in_an_error_ends_at_twenty() -> None:
    assert some_of(str(n) for n in range(20)).endswith("18, 19")
    assert some_of(str(n) for n in range(23)).endswith("18, 19 and 3 more")


def test_only_holstes_regions_are_derived_from_lungs(labelled_folder: Path, make_recipe: MakeRecipe) -> None:
    (labelled_folder / "dataset.toml").write_text('[truth]\nkind = "lungs"\nfolder = "labels"\n')
    films = load_dataset(labelled_folder)
    told = films.for_recipe(make_recipe(regions=("background", "lungs")))
    assert "derived from the lungs by geometry" not in told.origin
    derived = films.for_recipe(make_recipe(regions=("background", "lungs", "spine"))).origin
    assert derived["derived from the lungs by geometry"] == "spine"
    with pytest.raises(DataError, match="no heart: leave these out"):
        films.for_recipe(make_recipe(regions=("background", "lungs", "heart")))


def test_a_region_of_several_is_told_by_its_parts() -> None:
    assert tells(("left_lung", "right_lung"), "lungs") and tells(("lungs",), "lungs")
    assert not tells(("lungs",), "left_lung") and not tells(("left_lung",), "lungs") and tells((), "background")
