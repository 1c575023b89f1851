"""Starting from weights of elsewhere: names, shapes, refusals and the report."""

from __future__ import annotations

import collections
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("monai")

from trainer.errors import RecipeError  # noqa: E402
from trainer.networks.checkpoints import initialise  # noqa: E402
from trainer.networks.registry import make_network  # noqa: E402

Shapes = dict[str, tuple[int, ...]]
NAMES = ("densenet121", "densenet169", "resnet101")

#: As torchvision publishes them: parameters with 1,000 outputs, first and last layers.
KNOWN: dict[str, tuple[int, Shapes]] = {
    "densenet121": (
        7_978_856,
        {
            "features.conv0.weight": (64, 3, 7, 7),
            "features.norm0.running_mean": (64,),
            "features.denseblock1.denselayer1.norm1.weight": (64,),
            "features.denseblock1.denselayer1.conv1.weight": (128, 64, 1, 1),
            "features.denseblock1.denselayer1.conv2.weight": (32, 128, 3, 3),
            "features.transition3.conv.weight": (512, 1024, 1, 1),
            "features.denseblock4.denselayer16.conv1.weight": (128, 992, 1, 1),
            "features.norm5.bias": (1024,),
            "classifier.weight": (1000, 1024),
        },
    ),
    "densenet169": (
        14_149_480,
        {
            "features.conv0.weight": (64, 3, 7, 7),
            "features.denseblock4.denselayer32.conv1.weight": (128, 1632, 1, 1),
            "features.norm5.bias": (1664,),
            "classifier.weight": (1000, 1664),
            "classifier.bias": (1000,),
        },
    ),
    "resnet101": (
        44_549_160,
        {
            "conv1.weight": (64, 3, 7, 7),
            "bn1.weight": (64,),
            "layer1.0.conv1.weight": (64, 64, 1, 1),
            "layer1.0.downsample.0.weight": (256, 64, 1, 1),
            "layer3.22.conv2.weight": (256, 256, 3, 3),
            "layer4.2.bn3.running_var": (2048,),
            "fc.weight": (1000, 2048),
            "fc.bias": (1000,),
        },
    ),
}


def constants(shapes: Shapes) -> dict[str, torch.Tensor]:
    """A state dict whose n-th tensor is n everywhere; its file holds one number per tensor."""
    return {name: torch.full((1,), float(n)).expand(shape) for n, (name, shape) in enumerate(shapes.items())}


def empty_network(name: str, channels: int = 3, outputs: int = 10) -> torch.nn.Module:
    with torch.device("meta"):
        network = make_network(name, channels, outputs)
    return network.to_empty(device="cpu")


def saved(content: Any, folder: Path) -> Path:
    torch.save(content, folder / "weights.pth")
    return folder / "weights.pth"


@pytest.mark.parametrize("name", NAMES)
def test_this_suites_shapes_are_the_published_ones(name: str, published_shapes: Callable[..., Shapes]) -> None:
    parameters, known = KNOWN[name]
    shapes = published_shapes(name)
    assert sum(math.prod(shape) for key, shape in shapes.items() if "running" not in key) == parameters
    assert {key: shapes.get(key) for key in known} == known


@pytest.mark.parametrize("name", NAMES)
def test_imagenet_weights_fill_all_but_the_head(
    name: str, published_shapes: Callable[..., Shapes], tmp_path: Path
) -> None:
    content = constants(published_shapes(name))
    content["features.norm0.num_batches_tracked"] = torch.tensor(7)
    network = empty_network(name)
    report = initialise(network, saved(content, tmp_path))
    head = "fc" if name == "resnet101" else "classifier"
    assert report.unused == (f"{head}.weight", f"{head}.bias")
    assert report.left_fresh == ("head.weight", "head.bias")
    assert len(report.matched) == len(published_shapes(name)) - 2
    assert report.reshaped == ()
    assert report.share == 1.0
    # The n-th tensor of the file is the n-th of the network, and no other.
    state = {key: value for key, value in network.state_dict().items() if "num_batches" not in key}
    for n, key in enumerate(report.matched):
        assert list(state)[n] == key
        assert state[key].min() == state[key].max() == n


def old_densenet(name: str) -> str:
    return re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)", r"\1.\2", name)


def monai(name: str) -> str:
    return re.sub(r"(denselayer\d+)\.", r"\1.layers.", name).replace("classifier", "class_layers.out")


@pytest.mark.parametrize(
    ("rename", "wrap"),
    [
        (old_densenet, lambda state: state),
        (monai, lambda state: state),
        (lambda name: f"module.{name}", lambda state: {"state_dict": state, "epoch": 3, "arch": "densenet121"}),
        (lambda name: f"model.{name}", lambda state: {"model": state, "class_weights": torch.ones(14)}),
        (lambda name: f"backbone.{name}", lambda state: {"model_state": state, "best": 0.9}),
        (lambda name: f"module.densenet121.{old_densenet(name)}", lambda state: {"state_dict": state}),
        (lambda name: name.replace("classifier", "module.model.fc"), lambda state: {"net": {"state_dict": state}}),
        (lambda name: name.replace("classifier", "classifier.0"), collections.OrderedDict),
    ],
    ids=["old", "monai", "module", "model", "backbone", "chexnet", "nested", "sequential-head"],
)
def test_reads_the_names_chexpert_trainings_use(
    rename: Callable[[str], str], wrap: Callable[[Any], Any], published_shapes: Callable[..., Shapes], tmp_path: Path
) -> None:
    content = constants(published_shapes("densenet121", 10))
    network = empty_network("densenet121")
    report = initialise(network, saved(wrap({rename(key): value for key, value in content.items()}), tmp_path))
    assert (report.share, report.unused, report.left_fresh) == (1.0, (), ())
    expected = list(content).index("features.denseblock4.denselayer16.conv2.weight")
    assert network.state_dict()["features.denseblock4.denselayer16.layers.conv2.weight"].unique() == expected
    assert network.head.bias.unique() == len(content) - 1
    assert "its outputs must mean the same" in str(report)


class TestChannels:
    def test_three_are_summed_into_one(self, published_shapes: Callable[..., Shapes], tmp_path: Path) -> None:
        content = constants(published_shapes("resnet101"))
        content["conv1.weight"] = torch.randn(64, 3, 7, 7)
        network = empty_network("resnet101", channels=1)
        report = initialise(network, saved(content, tmp_path))
        assert report.reshaped == ("features.conv1.weight",)
        assert "features.conv1.weight were summed" in str(report)
        grey = torch.rand(1, 1, 20, 20)
        before = torch.nn.functional.conv2d(grey.expand(-1, 3, -1, -1), content["conv1.weight"])
        after = torch.nn.functional.conv2d(grey, network.features.conv1.weight)
        assert torch.allclose(before, after, atol=1e-4)

    def test_one_is_shared_among_three(self, tmp_path: Path) -> None:
        one, three = make_network("small_classifier", 1, 2), make_network("small_classifier", 3, 2)
        report = initialise(three, saved(one.state_dict(), tmp_path))
        assert report.reshaped == ("features.0.0.weight",)
        grey = torch.rand(2, 1, 32, 32)
        for mine, expected in zip(three.eval()(grey.expand(-1, 3, -1, -1)), one.eval()(grey), strict=True):
            assert torch.allclose(mine, expected, atol=1e-5)


class TestOwnRuns:
    def test_a_run_folder_a_lightning_checkpoint_and_a_wrapper(self, tmp_path: Path) -> None:
        first = make_network("holste_unet", 1, 8, {"base_width": 2, "half_size": True})
        torch.save({f"network.{key}": value for key, value in first.state_dict().items()}, tmp_path / "network.pt")
        second = make_network("holste_unet", 1, 8, {"base_width": 2})
        report = initialise(second, tmp_path)
        assert (report.left_fresh, report.unused) == ((), ())
        for mine, theirs in zip(second.state_dict().values(), first.state_dict().values(), strict=True):
            assert torch.equal(mine, theirs)

    def test_other_regions_leave_the_head_fresh(self, tmp_path: Path) -> None:
        first, second = (make_network("holste_unet", 1, regions, {"base_width": 2}) for regions in (8, 3))
        head = second.head.weight.detach().clone()
        report = initialise(second, saved({"state_dict": first.state_dict()}, tmp_path))
        assert report.left_fresh == report.unused == ("head.weight", "head.bias")
        assert torch.equal(second.head.weight, head)
        assert torch.equal(second.contracting[2][0][0].weight, first.contracting[2][0][0].weight)

    def test_a_place_head_is_not_missed(self, tmp_path: Path) -> None:
        first = make_network("small_classifier", 1, 2)
        report = initialise(
            make_network("small_classifier", 1, 2, {"guided": True}), saved(first.state_dict(), tmp_path)
        )
        assert report.left_fresh == ("place.weight", "place.bias")
        assert report.share == 1.0

    def test_half_precision_is_widened(self, tmp_path: Path) -> None:
        first, second = make_network("small_classifier", 1, 2), make_network("small_classifier", 1, 2)
        initialise(second, saved(first.half().state_dict(), tmp_path))
        assert second.head.weight.dtype == torch.float32
        assert torch.equal(second.head.weight, first.head.weight.float())


def test_the_report_is_one_paragraph(tmp_path: Path) -> None:
    first = make_network("small_classifier", 1, 14)
    content = first.state_dict() | {"optimiser_step": torch.ones(1)}
    report = initialise(make_network("small_classifier", 1, 2), saved(content, tmp_path))
    assert str(report) == (
        "weights.pth: 40 of the network's 42 tensors were taken over, 100.0 % of the numbers below its head."
        " Left as they were: head.weight, head.bias."
        " In the file but not used: head.weight, head.bias, optimiser_step."
    )


class TestRefuses:
    @pytest.fixture
    def network(self) -> torch.nn.Module:
        return make_network("small_classifier", 1, 2, {"base_width": 2})

    def refused(self, network: torch.nn.Module, path: Path, words: str) -> None:
        before = {key: value.clone() for key, value in network.state_dict().items()}
        with pytest.raises(RecipeError, match=words) as caught:
            initialise(network, path)
        assert str(path.name) in str(caught.value)
        assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())

    def test_a_missing_file(self, network: torch.nn.Module, tmp_path: Path) -> None:
        self.refused(network, tmp_path / "none.pth", "there is no file")

    @pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"\x80\x02}q\x00.", b"PK\x03\x04" + bytes(64)])
    def test_a_damaged_file(self, network: torch.nn.Module, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "damaged.pth").write_bytes(content)
        self.refused(network, tmp_path / "damaged.pth", "damaged|no named tensors")

    def test_a_truncated_file(self, network: torch.nn.Module, tmp_path: Path) -> None:
        path = saved(network.state_dict(), tmp_path)
        path.write_bytes(path.read_bytes()[:-200])
        self.refused(network, path, "damaged")

    def test_objects_that_could_run_code(self, network: torch.nn.Module, tmp_path: Path) -> None:
        path = saved({"state_dict": network.state_dict(), "path": tmp_path}, tmp_path)
        self.refused(network, path, "which could run code.*Save the network's state_dict alone")

    @pytest.mark.parametrize("content", [{}, [torch.ones(1)], {"state_dict": {"epoch": 3}}, torch.ones(2), {1: 2}])
    def test_a_file_without_named_tensors(self, network: torch.nn.Module, tmp_path: Path, content: Any) -> None:
        self.refused(network, saved(content, tmp_path), "holds no named tensors")

    def test_another_network(self, published_shapes: Callable[..., Shapes], tmp_path: Path) -> None:
        path = saved(constants(published_shapes("densenet169")), tmp_path)
        with pytest.raises(
            RecipeError, match=r"weights\.pth does not fit: it gives \d+\.\d % .* Not found: features\."
        ):
            initialise(empty_network("densenet121"), path)

    def test_nothing_in_common(self, network: torch.nn.Module, tmp_path: Path) -> None:
        self.refused(network, saved({"a.weight": torch.ones(2, 2)}, tmp_path), r"gives 0\.0 %")

    def test_the_same_network_of_another_width(self, network: torch.nn.Module, tmp_path: Path) -> None:
        wider = make_network("small_classifier", 1, 2, {"base_width": 4})
        self.refused(network, saved(wider.state_dict(), tmp_path), "does not fit")

    def test_a_tenth_too_little(self, network: torch.nn.Module, tmp_path: Path) -> None:
        content = network.state_dict()
        del content["features.7.0.weight"]  # the largest
        self.refused(network, saved(content, tmp_path), r"Not found: features\.7\.0\.weight")

    def test_values_that_are_not_finite(self, network: torch.nn.Module, tmp_path: Path) -> None:
        content = {key: value.clone() for key, value in network.state_dict().items()}
        content["features.3.0.weight"][0, 0, 0, 0] = float("nan")
        self.refused(network, saved(content, tmp_path), r"not finite in features\.3\.0\.weight")


def test_the_encoder_of_a_unet_starts_from_a_classifiers_weights(tmp_path):
    network = make_network("resnet34_unet", 3, 2)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    published = {
        name.removeprefix("encoder."): torch.randn(tensor.shape)
        for name, tensor in before.items()
        if name.startswith("encoder.") and tensor.is_floating_point()
    }
    published |= {"fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}
    assert sum(tensor.numel() for tensor in published.values()) == 21_814_696  # torchvision's, with running statistics
    torch.save(published, tmp_path / "resnet34.pth")

    report = initialise(network, tmp_path / "resnet34.pth")

    assert report.share == 1.0
    assert set(report.unused) == {"fc.weight", "fc.bias"}
    for name, tensor in network.state_dict().items():
        if name.startswith("encoder.") and tensor.is_floating_point():
            assert torch.equal(tensor, published[name.removeprefix("encoder.")])
        else:
            assert torch.equal(tensor, before[name])


def test_half_an_encoder_is_refused(tmp_path):
    network = make_network("resnet34_unet", 3, 2)
    half = {name: tensor for name, tensor in network.state_dict().items() if "layer4" not in name}
    torch.save(half, tmp_path / "half.pt")
    with pytest.raises(RecipeError, match=r"does not fit.*encoder\.layer4"):
        initialise(network, tmp_path / "half.pt")
