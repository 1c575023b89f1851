"""Losses by name: options, refusals, and the check before a training."""

from __future__ import annotations

import math
import pickle
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from trainer.errors import DataError, RecipeError  # noqa: E402
from trainer.losses import (  # noqa: E402
    CLASSIFICATION_LOSSES,
    SEGMENTATION_LOSSES,
    LabelStatistics,
    check_targets,
    classification_loss,
    segmentation_loss,
)
from trainer.losses.segmentation import CrossEntropy, CrossEntropyDice  # noqa: E402
from trainer.recipe import load_recipe, recipe_names  # noqa: E402
from trainer.region_losses import REGION_LOSSES  # noqa: E402

REGIONS = ("background", "left_lung", "carina")
STATISTICS = LabelStatistics(("bronchitis", "no_finding"), (30, 55), 100)


def pictures() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(0, 3, (2, 4, 4), generator=generator)
    return torch.randn(2, 3, 4, 4, generator=generator), labels, torch.rand(2, 4, 4, generator=generator) + 0.1


class TestSegmentation:
    @pytest.mark.parametrize("name", SEGMENTATION_LOSSES)
    def test_every_name_gives_a_loss(self, name: str) -> None:
        logits, labels, weights = pictures()
        for activation in REGION_LOSSES[name].activations:
            loss = segmentation_loss(name, {}, REGIONS, activation)
            alone = activation == "sigmoid" and not REGION_LOSSES[name].background
            value = loss(logits[:, alone:], labels, None).item()
            assert value > 0
            assert loss(logits[:, alone:], labels, weights).item() != value
            assert pickle.loads(pickle.dumps(loss))(logits[:, alone:], labels, None).item() == value

    def test_recipes_know_the_same_losses(self) -> None:
        assert tuple(REGION_LOSSES) == SEGMENTATION_LOSSES

    def test_options_reach_the_loss(self) -> None:
        logits, labels, _ = pictures()
        for name, options in (
            ("class_frequency_cross_entropy", {"weighted": False}),
            ("class_frequency_dice", {"weighted": False}),
            ("tversky", {"alpha": 0.9}),
            ("focal_tversky", {"beta": 0.9}),
            ("focal_tversky", {"exponent": 2}),
        ):
            plain, other = (segmentation_loss(name, each, REGIONS) for each in ({}, options))
            assert plain(logits, labels, None).item() != other(logits, labels, None).item()

    @pytest.mark.parametrize(
        ("name", "kind"), [("cross_entropy", CrossEntropy), ("cross_entropy_dice", CrossEntropyDice)]
    )
    def test_class_weights_by_name_of_region(self, name: str, kind: type) -> None:
        logits, labels, weights = pictures()
        loss = segmentation_loss(name, {"class_weights": {"carina": 20, "background": 0.5}}, REGIONS)
        expected = kind(torch.tensor([0.5, 1.0, 20.0]))
        assert loss(logits, labels, weights).item() == expected(logits, labels, weights).item()

    @pytest.mark.parametrize(
        ("name", "options", "message"),
        [
            ("cross_entropi", {}, r"no loss 'cross_entropi'; did you mean 'cross_entropy'\?$"),
            ("mse", {}, "no loss 'mse'; known are cross_entropy, generalised_dice"),
            ("cross_entropy", {"class_weight": {}}, r"no 'class_weight'; did you mean 'class_weights'\?$"),
            ("generalised_dice", {"class_weights": {}}, r"no 'class_weights'; known are none\.$"),
            ("cross_entropy", {"class_weights": {"karina": 2.0}}, r"no 'karina'; did you mean 'carina'\?$"),
            ("cross_entropy", {"class_weights": {"carina": 0}}, "carina is 0: it must be a number, above 0"),
            ("cross_entropy", {"class_weights": {"carina": "2"}}, "carina is '2': it must be a number"),
            ("cross_entropy", {"class_weights": {"carina": math.inf}}, "carina is inf: it must be a number"),
            ("cross_entropy", {"class_weights": [1, 2, 3]}, "must be a table"),
            ("class_frequency_dice", {"weighted": 1}, "weighted is 1: it must be true or false"),
            ("class_frequency_dice", {"class_weights": {}}, r"no 'class_weights'; did you mean 'weighted'\?$"),
            ("focal_tversky", {"exponent": 0}, "exponent is 0: it must be a number, above 0"),
            ("tversky", {"exponent": 1}, r"no 'exponent'; known are alpha, beta\.$"),
            ("binary_cross_entropy_jaccard", {}, r"is for sigmoid and not for softmax\.$"),
        ],
    )
    def test_what_is_wrong_is_said(self, name: str, options: dict[str, Any], message: str) -> None:
        with pytest.raises(RecipeError, match=message):
            segmentation_loss(name, options, REGIONS)


class TestClassification:
    @pytest.mark.parametrize("name", CLASSIFICATION_LOSSES)
    def test_every_name_gives_a_loss_that_travels_to_another_process(self, name: str) -> None:
        logits = torch.tensor([[0.3, -1.0], [2.0, 0.1]])
        targets = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        loss = classification_loss(name, {}, STATISTICS)
        value = loss(logits, targets).item()
        assert value > 0
        assert pickle.loads(pickle.dumps(loss))(logits, targets).item() == value

    @pytest.mark.parametrize(
        ("name", "options", "message"),
        [
            ("focall", {}, r"no loss 'focall'; did you mean 'focal'\?$"),
            ("generalised_dice", {}, "no loss 'generalised_dice'"),
            ("focal", {"gama": 2}, r"no 'gama'; did you mean 'gamma'\?$"),
            ("binary_cross_entropy", {"gamma": 2}, r"no 'gamma'; known are none\.$"),
            ("distribution_balanced", {"lambda_": 2}, r"no 'lambda_'; did you mean 'lambda'\?$"),
            ("focal", {"gamma": -1}, "gamma is -1: it must be a number, 0 or more"),
            ("focal", {"alpha": 1.5}, "alpha is 1.5: it must be a number, 0 or more, 1 at most"),
            ("focal", {"alpha": True}, "alpha is True: it must be a number"),
            ("modified_distribution_balanced", {"lambda": 0}, "lambda is 0: it must be a number, above 0"),
            ("distribution_balanced", {"kappa": math.nan}, "kappa is nan: it must be a number"),
        ],
    )
    def test_what_is_wrong_is_said(self, name: str, options: dict[str, Any], message: str) -> None:
        with pytest.raises(RecipeError, match=message):
            classification_loss(name, options, STATISTICS)


class TestRecipes:
    @pytest.mark.parametrize("name", recipe_names())
    def test_every_recipe_names_a_loss_that_exists(self, name: str) -> None:
        recipe = load_recipe(name)
        cells = recipe.grid.cells if recipe.grid else ()
        recipes = [load_recipe(name, cell.set) for cell in cells] or [recipe]
        for each in recipes:
            if each.task == "segmentation":
                loss = segmentation_loss(each.loss.name, each.loss.options, each.data.regions, each.network.activation)
                assert callable(loss)
            else:
                findings = each.data.findings
                statistics = LabelStatistics(findings, (1,) * len(findings), 2)
                assert callable(classification_loss(each.loss.name, each.loss.options, statistics))


class TestCheckTargets:
    NAMES = ("one.dcm", "two.dcm", "three.dcm")
    BALANCED = ("distribution_balanced", "modified_distribution_balanced")

    @pytest.mark.parametrize("name", BALANCED)
    @pytest.mark.parametrize("row", [[0, 0], [0, math.nan], [math.nan, math.nan]])
    def test_the_first_film_without_a_positive_label_is_named(self, name: str, row: list[float]) -> None:
        targets = np.array([[1, 0], row, row], np.float32)
        with pytest.raises(DataError, match=r"Film two\.dcm has no positive label \(2 of 3 films have none\)"):
            check_targets(name, targets, self.NAMES, STATISTICS)

    @pytest.mark.parametrize("name", BALANCED)
    def test_a_finding_nobody_has_is_named(self, name: str) -> None:
        targets = np.array([[1, 0], [0, 1], [1, math.nan]], np.float32)
        check_targets(name, targets, self.NAMES, STATISTICS)
        nobody = LabelStatistics(STATISTICS.findings, (30, 0), 100)
        with pytest.raises(DataError, match="no_finding is positive in no training film"):
            check_targets(name, targets, self.NAMES, nobody)

    @pytest.mark.parametrize("name", ["binary_cross_entropy", "weighted_binary_cross_entropy", "focal"])
    def test_other_losses_take_any_film(self, name: str) -> None:
        targets = np.zeros((3, 2), np.float32)
        nobody = LabelStatistics(STATISTICS.findings, (0, 0), 3)
        check_targets(name, targets, self.NAMES, nobody)
        assert classification_loss(name, {}, nobody)(torch.zeros(3, 2), torch.from_numpy(targets)).item() >= 0

    def test_an_unknown_loss_is_refused(self) -> None:
        with pytest.raises(RecipeError, match="did you mean 'focal'"):
            check_targets("fokal", np.ones((3, 2)), self.NAMES, STATISTICS)
