"""Optimisers, schedules, averaging, precision."""

from __future__ import annotations

import math

import numpy as np
import pytest

pytest.importorskip("lightning")

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim.swa_utils import AveragedModel

from trainer.recipe import OptimiserTable, ScheduleTable
from trainer.training.optimisation import _Average, lightning_precision, make_optimiser, rate_factor


class TestOptimisers:
    @pytest.mark.parametrize(
        ("name", "kind"),
        [
            ("adam", torch.optim.Adam),
            ("adamw", torch.optim.AdamW),
            ("sgd", torch.optim.SGD),
            ("rmsprop", torch.optim.RMSprop),
        ],
    )
    def test_take_the_recipes_settings(self, name: str, kind: type) -> None:
        table = OptimiserTable(name=name, rate=0.02, momentum=0.7, weight_decay=0.03)
        optimiser = make_optimiser(torch.nn.Linear(2, 2).parameters(), table)
        assert type(optimiser) is kind
        group = optimiser.param_groups[0]
        assert (group["lr"], group["weight_decay"]) == (0.02, 0.03)
        assert group.get("momentum", 0.7) == (0.7 if name != "rmsprop" else 0)


class TestSchedules:
    def test_constant(self) -> None:
        factor = rate_factor(ScheduleTable(), 100, 10)
        assert {factor(step) for step in range(100)} == {1.0}

    def test_cosine_warms_up_and_falls_to_nothing(self) -> None:
        factor = rate_factor(ScheduleTable(name="cosine", warm_up=0.1), 100, 10)
        assert factor(0) == pytest.approx(1 / 11)
        assert factor(9) == pytest.approx(10 / 11)
        assert factor(10) == 1.0
        assert factor(55) == pytest.approx(0.5)
        assert factor(100) == pytest.approx(0.0)

    def test_triangular_against_smiths_own_formula(self) -> None:
        """Smith (2017), section 3.2: the code he prints for the triangular policy."""
        base, highest, half = 0.25e-3, 1e-3, 20
        factor = rate_factor(ScheduleTable(name="triangular", lowest=0.25, cycle=4), 800, 10)
        for step in range(200):
            cycle = math.floor(1 + step / (2 * half))
            x = abs(step / half - 2 * cycle + 1)
            assert 1e-3 * factor(step) == pytest.approx(base + (highest - base) * max(0.0, 1 - x))

    def test_triangular_once_over_the_training(self) -> None:
        factor = rate_factor(ScheduleTable(name="triangular", lowest=0.1), 100, 10)
        assert factor(0) == pytest.approx(0.1)
        assert factor(50) == 1.0
        assert factor(99) == pytest.approx(0.1 + 0.9 * 0.02)

    @given(
        st.sampled_from(["constant", "cosine", "triangular"]),
        st.floats(0, 0.99),
        st.floats(0, 0.99),
        st.integers(0, 7),
        st.integers(1, 30),
        st.integers(1, 40),
    )
    def test_never_leaves_zero_to_one(
        self, name: str, warm_up: float, lowest: float, cycle: int, per_epoch: int, epochs: int
    ) -> None:
        table = ScheduleTable(name=name, warm_up=warm_up, lowest=lowest, cycle=cycle)
        factor = rate_factor(table, epochs * per_epoch, per_epoch)
        values = [factor(step) for step in range(epochs * per_epoch + 1)]
        assert min(values) >= 0
        assert max(values) <= 1 + 1e-12


class TestAverage:
    def test_against_a_plain_loop(self) -> None:
        network = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))
        averaged = AveragedModel(network, use_buffers=True, multi_avg_fn=_Average(0.6))
        expected: list[np.ndarray] = []
        generator = torch.Generator().manual_seed(1)
        for update in range(6):
            with torch.no_grad():
                for tensor in [*network.parameters(), *network.buffers()]:
                    tensor.copy_(torch.rand(tensor.shape, generator=generator) * 10)
            averaged.update_parameters(network)
            values = [t.detach().numpy().astype(np.float64) for t in [*network.parameters(), *network.buffers()]]
            decay = min(0.6, (1 + update) / (10 + update))
            if not update:
                expected = values
            else:
                expected = [
                    new if new.ndim == 0 else old + (1 - decay) * (new - old)
                    for old, new in zip(expected, values, strict=True)
                ]
        mine = [*averaged.module.parameters(), *averaged.module.buffers()]
        for found, right in zip(mine, expected, strict=True):
            np.testing.assert_allclose(found.detach().numpy(), right, rtol=1e-5)


class TestPrecision:
    @pytest.mark.parametrize(
        ("choice", "native", "name"),
        [
            ("32", True, "32-true"),
            ("bf16", False, "bf16-mixed"),
            ("auto", True, "bf16-mixed"),
            ("auto", False, "32-true"),
        ],
    )
    def test_auto_follows_the_machine(
        self, choice: str, native: bool, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("trainer.training.optimisation.has_bfloat16", lambda _accelerator: native)
        assert lightning_precision(choice, "cpu") == name
