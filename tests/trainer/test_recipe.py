"""Recipes as checked data: bases, changes, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pydantic")

from hypothesis import given
from hypothesis import strategies as st

from schema.regions import REGION_SETS
from trainer.errors import RecipeError
from trainer.recipe import check_recipe, load_recipe, nearest, recipe_names

_BASE = """
description = "below"
task = "segmentation"
preprocess = [{ step = "min_max" }, { step = "resize", height = 32, width = 64 }]

[network]
name = "holste_unet"
options = { base_width = 4 }

[data]
regions = ["background", "left_lung", "right_lung"]

[loss]
name = "cross_entropy"
options = { class_weights = { left_lung = 2.0 } }

[training]
epochs = 3
batch_size = 2

[bundle]
name = "below"
"""


RESIZE = {"step": "resize", "height": 32, "width": 64}
STANDARDISE = {"step": "standardise", "from": "training"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "below.toml").write_text(_BASE, "utf-8")
    return tmp_path


def _write(folder: Path, text: str, name: str = "above") -> Path:
    path = folder / f"{name}.toml"
    path.write_text(text, "utf-8")
    return path


class TestBase:
    def test_says_only_what_differs(self, folder: Path) -> None:
        recipe = load_recipe(_write(folder, 'base = "below"\n[training]\nepochs = 7\n'))
        assert recipe.name == "above"
        assert (recipe.training.epochs, recipe.training.batch_size) == (7, 2)
        assert recipe.network.options == {"base_width": 4}

    def test_bundle_and_grid_are_not_inherited(self, folder: Path) -> None:
        assert load_recipe(folder / "below.toml").bundle is not None
        assert load_recipe(_write(folder, 'base = "below"\n')).bundle is None

    def test_another_loss_starts_without_the_old_ones_options(self, folder: Path) -> None:
        other = load_recipe(_write(folder, 'base = "below"\n[loss]\nname = "generalised_dice"\n'))
        assert other.loss.options == {}
        same = load_recipe(_write(folder, 'base = "below"\n[loss]\nname = "cross_entropy"\n'))
        assert same.loss.options == {"class_weights": {"left_lung": 2.0}}

    def test_circles_are_refused(self, folder: Path) -> None:
        _write(folder, 'base = "above"\n', "other")
        with pytest.raises(RecipeError, match="starts from itself"):
            load_recipe(_write(folder, 'base = "other"\n'))

    def test_a_packaged_recipe_can_be_the_base(self, folder: Path) -> None:
        recipe = load_recipe(_write(folder, 'base = "holste"\n[data]\nfilms = 20\n'))
        assert (recipe.outputs, recipe.data.films) == (8, 20)


class TestChanges:
    def test_dotted_keys(self, folder: Path) -> None:
        changes = {"training.epochs": 9, "augmentation.live.gamma": 0.5, "network.options.base_width": 8}
        recipe = load_recipe(folder / "below.toml", changes)
        assert (recipe.training.epochs, recipe.augmentation.live.gamma) == (9, 0.5)
        assert recipe.network.options == {"base_width": 8}

    def test_another_network_starts_without_the_old_ones_options(self, folder: Path) -> None:
        recipe = load_recipe(folder / "below.toml", {"network.name": "other"})
        assert recipe.network.options == {}

    def test_a_value_is_no_table(self, folder: Path) -> None:
        with pytest.raises(RecipeError, match=r"task is not a table"):
            load_recipe(folder / "below.toml", {"task.kind": "x"})


class TestRefusals:
    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"training.epoch": 2}, "did you mean 'epochs'"),
            ({"lose.name": "x"}, "did you mean 'loss'"),
            ({"data.split.tran": 0.5}, "did you mean 'train'"),
            ({"training.epochs": 0}, r"training\.epochs"),
            ({"training.epochs": "3"}, r"training\.epochs"),
            ({"data.regions": ["background", "left_lunge"]}, "did you mean 'left_lung'"),
            ({"data.regions": ["left_lung", "right_lung"]}, "must start with background"),
            ({"data.split.train": 0.9}, "add up to 1"),
            ({"data.split.folds": 1}, "folds must be 0 or at least 2"),
            ({"training.monitor": "mean_auroc"}, "mean_dice or lung_dice or loss"),
            ({"preprocess": [{"step": "min_max"}]}, "own size"),
            ({"preprocess": [{"step": "resize", "height": 32}]}, "width"),
            ({"task": "classification", "training.monitor": "loss"}, "at least one finding"),
            ({"task": "classification", "data.findings": ["pneumonja"]}, "did you mean 'pneumonia'"),
            ({"optimiser.rate": float("inf")}, r"optimiser\.rate"),
            ({"loss.evidence": 0.5}, r"loss\.evidence is for classifiers"),
            ({"network.activation": "sigmoid"}, r"cross_entropy is not for .*'sigmoid': choose softmax .*tversky"),
            ({"network.threshold": 0.5}, r"network\.threshold is asked where .* 'sigmoid'"),
            ({"loss.name": "binary_cross_entropy_jaccard"}, "choose sigmoid there, or one of the losses cross_entropy"),
            ({"augmentation.mixup": 0.2}, r"augmentation\.mixup gives pixels more than one region.*focal_tversky"),
            ({"data.overlapping": True, "loss.name": "tversky"}, "softmax cannot answer: set network.activation"),
            (
                {"augmentation.mixup": 0.2, "loss.name": "tversky", "loss.pixel_weights": "w1"},
                r"leave it or augmentation\.mixup out",
            ),
            (
                {"task": "classification", "data.findings": ["pneumonia"], "augmentation.mixup": 0.2},
                r"augmentation\.mixup is for segmentation",
            ),
            ({"preprocess": [STANDARDISE, RESIZE]}, "after standardise only channels may follow"),
            ({"preprocess": [RESIZE, {**STANDARDISE, "from": "test"}]}, r'or from = "training" and nothing else'),
            ({"preprocess": [RESIZE, {**STANDARDISE, "std": 0.1}]}, r'or from = "training" and nothing else'),
            (
                {"task": "classification", "loss.evidence": 0.5, "loss.guidance": 0.5},
                r"loss\.evidence and loss\.guidance both say where",
            ),
        ],
    )
    def test_what_is_wrong_is_named(self, changes: dict[str, Any], said: str, folder: Path) -> None:
        with pytest.raises(RecipeError, match=said) as caught:
            load_recipe(folder / "below.toml", changes)
        assert "below.toml" in str(caught.value)

    def test_a_missing_key(self, folder: Path) -> None:
        with pytest.raises(RecipeError, match=r"training\.batch_size is missing"):
            load_recipe(_write(folder, _BASE.replace("batch_size = 2", "")))

    def test_an_unknown_name(self) -> None:
        with pytest.raises(RecipeError, match="did you mean 'holste'"):
            load_recipe("holstee")

    def test_no_toml(self, folder: Path) -> None:
        with pytest.raises(RecipeError, match=r"above\.toml cannot be read"):
            load_recipe(_write(folder, "name = "))


class TestRecipe:
    def test_plain_values_give_the_same_recipe(self) -> None:
        for name in recipe_names():
            recipe = load_recipe(name)
            assert check_recipe(recipe.to_dict(), name) == recipe

    def test_shape_and_regions(self, folder: Path) -> None:
        recipe = load_recipe(folder / "below.toml")
        assert recipe.input_shape == (1, 32, 64)
        assert [(region.value, region.name) for region in recipe.region_definitions] == [
            (0, "background"), (1, "left_lung"), (2, "right_lung"),
        ]  # fmt: skip

    @pytest.mark.parametrize(
        ("loss", "activation", "outputs"),
        [
            ("cross_entropy", "softmax", 3),
            ("class_frequency_dice", "softmax", 3),
            ("class_frequency_dice", "sigmoid", 2),
            ("class_frequency_cross_entropy", "sigmoid", 3),
            ("binary_cross_entropy_jaccard", "sigmoid", 2),
        ],
    )
    def test_channels_of_the_network(self, loss: str, activation: str, outputs: int, folder: Path) -> None:
        recipe = load_recipe(folder / "below.toml", {"loss.name": loss, "network.activation": activation})
        assert recipe.outputs == outputs
        assert recipe.has_background == (outputs == 3)

    @given(st.text(min_size=1, max_size=12), st.lists(st.text(min_size=1, max_size=12), max_size=4))
    def test_the_nearest_is_always_one_that_exists(self, name: str, known: list[str]) -> None:
        said = nearest(name, known)
        assert any(repr(one) in said for one in known) or ("known are" in said and all(one in said for one in known))


class TestPreprocessThatCannotWork:
    STANDARDISED = (
        '[[preprocess]]\nstep = "resize"\nheight = 32\nwidth = 64\n'
        '[[preprocess]]\nstep = "standardise"\nmean = 0.5\nstd = 0.2\n'
    )

    @pytest.mark.parametrize("augmentation", ["live]\nrotation = 5.0", "saved]\ncopies = 3"])
    def test_standardised_films_may_be_varied(self, folder: Path, augmentation: str) -> None:
        recipe = load_recipe(_write(folder, f'base = "below"\n{self.STANDARDISED}[augmentation.{augmentation}\n'))
        assert recipe.standardisation == (0.5, 0.2)

    def test_numbers_of_the_training_films_are_put_in_later(self, folder: Path) -> None:
        recipe = load_recipe(folder / "below.toml", {"preprocess": [RESIZE, STANDARDISE]})
        assert recipe.needs_statistics
        assert recipe.before_statistics.preprocess == (RESIZE,)
        measured = recipe.measured(0.25, 0.5)
        assert not measured.needs_statistics
        assert measured.standardisation == (0.25, 0.5)
        assert check_recipe(measured.to_dict(), "again") == measured
        assert load_recipe(folder / "below.toml").standardisation == (0.0, 1.0)

    def test_masks_of_a_grid_with_borders_could_not_be_laid_back(self, folder: Path) -> None:
        step = '[[preprocess]]\nstep = "resize"\nheight = 32\nwidth = 64\nfit = "longest_side"\n'
        with pytest.raises(RecipeError, match=r"laid over the whole film: use fit = 'stretch'"):
            load_recipe(_write(folder, f'base = "below"\n{step}'))


def test_regions_may_be_named_by_their_set(tmp_path: Path) -> None:
    base = tmp_path / "below.toml"
    base.write_text(_BASE)
    recipe = load_recipe(base, {"data.regions": "scr", "loss.options": {}})
    assert recipe.data.regions == REGION_SETS["scr"] and type(recipe.data.regions[1]) is str
    assert [region.value for region in recipe.region_definitions] == list(range(6))
    assert recipe.region_definitions[3].title == "Heart"
    with pytest.raises(RecipeError, match="no region set 'novikow'; did you mean 'novikov'"):
        load_recipe(base, {"data.regions": "novikow"})
    many = ["background", "spine", "mediastinum", "heart", "lungs", "left_lung", "right_lung", "clavicles", "carina"]
    overlapping = {"data.regions": many, "data.overlapping": True, "loss.name": "tversky"}
    with pytest.raises(RecipeError, match="seven regions beside the background"):
        load_recipe(base, {**overlapping, "network.activation": "sigmoid"})
