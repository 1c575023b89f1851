"""The layout of JSRT and SCR, on films drawn for the purpose: the databases may not be passed on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from scr_films import FOLDERS, NAMES, as_png, scr_masks, shift_of, write_masks, write_scr

from schema.regions import REGION_SETS
from trainer.data.description import load_dataset
from trainer.data.splits import split
from trainer.data.store import Samples, build_samples
from trainer.errors import DataError
from trainer.recipe import Recipe, SplitTable

MakeRecipe = Callable[..., Recipe]
SIDE = 64
SCR, NOVIKOV = REGION_SETS["scr"], REGION_SETS["novikov"]


@pytest.fixture(scope="module")
def scr(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scr(tmp_path_factory.mktemp("jsrt") / "set", side=SIDE)


@pytest.fixture
def samples_of(tmp_path: Path, make_recipe: MakeRecipe) -> Callable[..., Samples]:
    def build(root: Path, regions: tuple[str, ...], layout: str = "", *, overlapping: bool = False) -> Samples:
        recipe = make_recipe(regions=regions, height=32, width=32)
        # Only the data table matters here: what a network makes of overlaps is its own business.
        data = recipe.data.model_copy(update={"overlapping": overlapping})
        recipe = recipe.model_copy(update={"data": data})
        usable = load_dataset(root, layout).for_recipe(recipe)
        return build_samples(usable, range(len(usable.records)), recipe, tmp_path / "cache", processes=1)

    return build


def true_masks(number: int) -> dict[str, np.ndarray]:
    """What was drawn, from half the films' size straight to the network's grid."""
    return {
        region: cv2.resize(mask.astype(np.uint8), (32, 32), interpolation=cv2.INTER_NEAREST_EXACT) > 0
        for region, mask in scr_masks(SIDE // 2, shift_of(number)).items()
    }


def test_every_film_has_five_masks_and_its_fold(scr: Path) -> None:
    films = load_dataset(scr)
    assert films.name == "jsrt_scr"
    assert [record.name for record in films.records] == list(NAMES)
    assert {record.truth_regions for record in films.records} == {tuple(FOLDERS)}
    assert [record.fold for record in films.records] == ["fold1", "fold2", "fold1", "fold1", "fold2", "fold1"]
    assert len({record.patient for record in films.records}) == len(NAMES)
    second = films.records[1]
    assert second.masks["heart"] == scr / "scratch" / "fold2" / "masks" / "heart" / "JPCLN002.gif"
    assert second.raw is not None and (second.raw.bits, second.raw.byte_order, second.raw.inverted) == (12, "big", True)


def test_five_regions_lie_where_they_were_drawn_clavicles_on_top(scr: Path, samples_of: Callable[..., Samples]) -> None:
    samples = samples_of(scr, SCR)
    assert samples.labels is not None and not samples.overlapping
    for number in range(len(NAMES)):
        expected = np.zeros((32, 32), np.uint8)
        for value, region in enumerate(SCR):
            if value:
                expected[true_masks(number)[region]] = value
        np.testing.assert_array_equal(samples.labels[number], expected)
    assert set(np.unique(samples.labels[0])) == set(range(6))


def test_films_are_turned_white_where_they_are_dense(scr: Path, samples_of: Callable[..., Samples]) -> None:
    samples = samples_of(scr, SCR)
    picture, labels = np.asarray(samples.pictures[0, 0], float), np.asarray(samples.labels)[0]
    means = {region: picture[labels == SCR.index(region)].mean() for region in SCR}
    assert means["left_lung"] < means["background"] < means["heart"]
    assert means["left_lung"] < means["left_clavicle"] < means["heart"]


def test_lungs_and_clavicles_are_joined_and_overlap(scr: Path, samples_of: Callable[..., Samples]) -> None:
    """Novikov et al., section III-A: lungs with the clavicles over them, clavicles, heart; a pixel may be of two."""
    samples = samples_of(scr, NOVIKOV, overlapping=True)
    assert samples.overlapping and samples.labels is not None
    masks = true_masks(0)
    wanted = {
        "lungs": masks["left_lung"] | masks["right_lung"],
        "heart": masks["heart"],
        "clavicles": masks["left_clavicle"] | masks["right_clavicle"],
    }
    stored = np.asarray(samples.labels[0])
    for place, region in enumerate(NOVIKOV[1:], start=1):
        np.testing.assert_array_equal(stored >> place & 1 > 0, wanted[region])
    assert (wanted["lungs"] & wanted["clavicles"]).any()
    # The second truth of the paper, for the cross-entropy: lungs without clavicles.
    flat = samples_of(scr, NOVIKOV)
    assert flat.labels is not None and flat.digest != samples.digest
    np.testing.assert_array_equal(samples.label_map(0), flat.labels[0])
    np.testing.assert_array_equal(flat.labels[0] == 1, wanted["lungs"] & ~wanted["clavicles"] & ~wanted["heart"])


def test_scrs_own_folds_test_on_one_and_train_on_the_other(scr: Path) -> None:
    records = load_dataset(scr).records
    for fold, tested in enumerate(("fold1", "fold2")):
        table = SplitTable(train=0.7, validation=0.3, test=0.0, folds=2, fold=fold, own_folds=True)
        chosen = split(records, table)
        assert {records[index].fold for index in chosen.test} == {tested}
        assert {records[index].fold for index in (*chosen.train, *chosen.validation)} == {"fold1", "fold2"} - {tested}
        assert len(chosen.test) == sum(record.fold == tested for record in records)


def test_other_folds_than_the_sets_own_are_refused(scr: Path) -> None:
    records = load_dataset(scr).records
    with pytest.raises(DataError, match=r"asks for 3 folds .* in fold1, fold2: correct data\.split\.folds"):
        split(records, SplitTable(folds=3, own_folds=True))
    without = [replace(record, fold="") for record in records]
    with pytest.raises(DataError, match="in none or in no fold"):
        split(without, SplitTable(folds=2, own_folds=True))
    with pytest.raises(ValueError, match="own_folds needs folds"):
        SplitTable(own_folds=True)


def test_converted_films_are_read_too(tmp_path: Path, samples_of: Callable[..., Samples]) -> None:
    raw, converted = (write_scr(tmp_path / name, NAMES[:2], side=SIDE) for name in ("raw", "converted"))
    as_png(converted)
    first, second = samples_of(raw, SCR), samples_of(converted, SCR)
    np.testing.assert_allclose(first.pictures, second.pictures, atol=0.02)
    np.testing.assert_array_equal(first.labels, second.labels)


def test_another_observers_masks_are_a_setting(tmp_path: Path, samples_of: Callable[..., Samples]) -> None:
    root = write_scr(tmp_path / "set", NAMES[:1], side=SIDE)
    moved = scr_masks(SIDE // 2, shift_of(0) + 0.05)
    write_masks(root / "second" / "fold1" / "masks", NAMES[0], moved)
    first = samples_of(root, SCR)
    described = (root / "dataset.toml").read_text()
    (root / "dataset.toml").write_text(f'{described}[truth]\nfolder = "second/fold*/masks"\n')
    second = samples_of(root, SCR)
    assert first.digest != second.digest
    np.testing.assert_array_equal(np.asarray(second.labels)[0] == SCR.index("heart"), moved["heart"])
    assert not np.array_equal(first.labels, second.labels)


def test_the_published_sizes_need_no_description(tmp_path: Path, samples_of: Callable[..., Samples]) -> None:
    root = write_scr(tmp_path / "set", NAMES[:1], side=2048, described=False)
    samples = samples_of(root, SCR, "jsrt_scr")
    assert samples.labels is not None
    for value, region in enumerate(SCR):
        if value > 2:  # nothing lies over these
            mask = scr_masks(1024, shift_of(0))[region].astype(np.uint8)
            laid = cv2.resize(mask, (32, 32), interpolation=cv2.INTER_NEAREST_EXACT) > 0
            assert np.mean((samples.labels[0] == value) == laid) > 0.995


class TestWhatIsWrong:
    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        return write_scr(tmp_path / "set", NAMES[:2], side=SIDE)

    def test_a_film_of_another_size(self, root: Path, samples_of: Callable[..., Samples]) -> None:
        (root / "All247images" / "JPCLN002.IMG").write_bytes(bytes(10))
        with pytest.raises(DataError, match=r"JPCLN002 .*10 bytes where 64 x 64 pixels"):
            samples_of(root, SCR)

    def test_a_missing_mask_is_named(self, root: Path, samples_of: Callable[..., Samples]) -> None:
        (root / "scratch" / "fold2" / "masks" / "heart" / "JPCLN002.gif").unlink()
        with pytest.raises(DataError, match=r"1 film of jsrt_scr lack.*JPCLN002 .*heart"):
            samples_of(root, SCR)

    def test_two_masks_of_one_film(self, root: Path) -> None:
        write_masks(root / "scratch" / "fold2" / "masks", "JPCLN001", scr_masks(SIDE // 2))
        with pytest.raises(DataError, match=r"JPCLN001 has two masks, .*let truth\.folder mean one"):
            load_dataset(root)

    def test_masks_of_other_proportions(self, root: Path, samples_of: Callable[..., Samples]) -> None:
        wide = {region: mask[:20] for region, mask in scr_masks(SIDE // 2).items()}
        write_masks(root / "scratch" / "fold1" / "masks", "JPCLN001", wide)
        with pytest.raises(DataError, match=r"size mismatch: the film is 64 x 64 .* 20 x 32"):
            samples_of(root, SCR)

    def test_a_region_that_nobody_drew(self, root: Path, samples_of: Callable[..., Samples]) -> None:
        with pytest.raises(DataError, match="no spine: leave these out"):
            samples_of(root, ("background", "left_lung", "spine"))

    def test_masks_without_their_kind(self, root: Path) -> None:
        (root / "dataset.toml").write_text('[truth]\nkind = "masks"\n')
        with pytest.raises(DataError, match="masks names the folders of regions"):
            load_dataset(root)
        (root / "dataset.toml").write_text('[truth]\nkind = "masks"\nmasks = { hart = "heart" }\n')
        with pytest.raises(DataError, match="no region 'hart'; did you mean 'heart'"):
            load_dataset(root)
