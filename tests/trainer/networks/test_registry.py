"""Networks by name: options, checks, and what a recipe builds."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("pydantic")

from trainer.errors import RecipeError  # noqa: E402
from trainer.networks.half_size import HalfSizeClassifier, HalfSizeSegmenter  # noqa: E402
from trainer.networks.holste_unet import HolsteUNet, parameter_count  # noqa: E402
from trainer.networks.registry import NETWORKS, build_network, make_network  # noqa: E402
from trainer.networks.small_classifier import GuidedClassifier, SmallClassifier  # noqa: E402
from trainer.recipe import Recipe, check_recipe, load_recipe, recipe_names  # noqa: E402


def a_recipe(name: str, size: tuple[int, int] = (64, 64), channels: int = 1, **changes: Any) -> Recipe:
    task = NETWORKS[name].task if name in NETWORKS else "segmentation"
    steps: list[dict[str, Any]] = [{"step": "min_max"}, {"step": "resize", "height": size[0], "width": size[1]}]
    if channels > 1:
        steps.append({"step": "channels", "count": channels})
    table: dict[str, Any] = {
        "name": "a-recipe",
        "description": "",
        "task": task,
        "network": {"name": name},
        "preprocess": steps,
        "data": {"regions": ["background", "left_lung", "carina"], "findings": ["pneumonia"]},
        "loss": {"name": "any"},
        "training": {"epochs": 1, "batch_size": 1},
    }
    return check_recipe(table | changes, "a-recipe")


def test_builds_what_the_recipe_says() -> None:
    network = build_network(a_recipe("holste_unet", network={"name": "holste_unet", "options": {"base_width": 4}}))
    assert isinstance(network, HolsteUNet)
    assert network(torch.rand(1, 1, 64, 64)).shape == (1, 3, 64, 64)


@pytest.mark.parametrize("name", recipe_names())
def test_every_packaged_recipe_builds_its_network(name: str) -> None:
    recipe = load_recipe(name)
    with torch.device("meta"):
        network = build_network(recipe, pretrained=False)
        answer = network(torch.rand(2, *recipe.input_shape))
    logits = answer if recipe.task == "segmentation" else answer[0]
    assert logits.shape[:2] == (2, recipe.outputs)


def test_the_papers_unet_is_the_default() -> None:
    with torch.device("meta"):
        assert parameter_count(make_network("holste_unet", 1, 8)) == 8_637_000


def test_channels_follow_the_preprocessing() -> None:
    network = build_network(a_recipe("small_classifier", channels=3))
    assert network.features[0][0].weight.shape[1] == 3
    assert type(network) is SmallClassifier


@pytest.mark.parametrize(
    ("name", "wrapper"), [("holste_unet", HalfSizeSegmenter), ("small_classifier", HalfSizeClassifier)]
)
def test_half_size_wraps_either_task(name: str, wrapper: type) -> None:
    network = make_network(name, 1, 3, {"half_size": True, "base_width": 2})
    assert isinstance(network, wrapper)
    assert isinstance(make_network(name, 1, 3, {"half_size": False, "base_width": 2}), type(network.network))


def test_guided_adds_the_place_head() -> None:
    assert not hasattr(make_network("small_classifier", 1, 2), "forward_guided")
    assert isinstance(make_network("small_classifier", 1, 2, {"guided": True}), GuidedClassifier)


class TestRefuses:
    def test_an_unknown_network(self) -> None:
        with pytest.raises(RecipeError, match="no network 'densnet121'; did you mean 'densenet121'"):
            make_network("densnet121", 3, 10)

    def test_an_unknown_option(self) -> None:
        with pytest.raises(RecipeError, match="holste_unet has no option 'basewidth'; did you mean 'base_width'"):
            make_network("holste_unet", 1, 8, {"basewidth": 16})

    def test_an_option_of_another_network(self) -> None:
        with pytest.raises(RecipeError, match="holste_unet has no option 'guided'"):
            make_network("holste_unet", 1, 8, {"guided": True})

    @pytest.mark.parametrize("value", [0, -3, 1.5, "16", True, None])
    def test_a_width_that_is_no_positive_whole_number(self, value: Any) -> None:
        with pytest.raises(RecipeError, match="base_width of holste_unet is a whole number of at least 1"):
            make_network("holste_unet", 1, 8, {"base_width": value})

    @pytest.mark.parametrize("value", [1, 0, "yes", None])
    def test_a_switch_that_is_no_truth_value(self, value: Any) -> None:
        with pytest.raises(RecipeError, match="half_size of resnet101 is true or false"):
            make_network("resnet101", 3, 10, {"half_size": value})

    @pytest.mark.parametrize(
        ("name", "size", "options", "multiple"),
        [
            ("holste_unet", (250, 256), {}, 16),
            ("holste_unet", (256, 264), {}, 16),
            ("holste_unet", (240, 240), {"half_size": True}, 32),
            ("small_classifier", (72, 64), {}, 16),
            ("densenet121", (80, 96), {}, 32),
        ],
    )
    def test_sides_that_do_not_divide(self, name: str, size: tuple[int, int], options: dict, multiple: int) -> None:
        recipe = a_recipe(name, size, network={"name": name, "options": options})
        with pytest.raises(
            RecipeError, match=rf"multiples of {multiple}, not {size[0]} and {size[1]}; change the resize"
        ):
            build_network(recipe)

    def test_a_network_of_the_other_task(self) -> None:
        recipe = a_recipe("holste_unet", network={"name": "resnet101"})
        with pytest.raises(RecipeError, match=r"resnet101 is for classification.*choose holste_unet"):
            build_network(recipe)

    @pytest.mark.parametrize(("guided", "guidance"), [(True, 0.0), (False, 1.0)])
    def test_a_place_head_without_guidance_and_the_reverse(self, guided: bool, guidance: float) -> None:
        network = {"name": "small_classifier", "options": {"guided": guided}}
        recipe = a_recipe("small_classifier", network=network, loss={"name": "any", "guidance": guidance})
        with pytest.raises(RecipeError, match="give both or neither"):
            build_network(recipe)


class TestCheckpoint:
    NETWORK = {"name": "small_classifier", "options": {"base_width": 2}}

    def test_weights_are_taken_and_told(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        first = build_network(a_recipe("small_classifier", network=self.NETWORK))
        torch.save(first.state_dict(), tmp_path / "network.pt")
        recipe = a_recipe("small_classifier", network=self.NETWORK | {"checkpoint": str(tmp_path / "network.pt")})
        with caplog.at_level(logging.INFO, "trainer.networks.registry"):
            second = build_network(recipe)
        assert torch.equal(second.features[3][0].weight, first.features[3][0].weight)
        assert "network.pt: 42 of the network's 42 tensors" in caplog.text

    def test_a_run_that_brings_its_own_weights_needs_no_checkpoint(self) -> None:
        recipe = a_recipe("small_classifier", network=self.NETWORK | {"checkpoint": "gone.pt"})
        assert isinstance(build_network(recipe, pretrained=False), SmallClassifier)
        with pytest.raises(RecipeError, match=r"there is no file gone\.pt"):
            build_network(recipe)
