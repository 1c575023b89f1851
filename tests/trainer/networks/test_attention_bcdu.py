"""Maga's network: what its gates read, in which order, and what they let through."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from trainer.networks.attention_bcdu import AttentionBcduNet, AttentionGate, BidirectionalConvLstm, ConvLstm  # noqa: E402
from trainer.networks.registry import make_network  # noqa: E402


def test_four_steps_down_at_the_papers_size() -> None:
    shapes: list[tuple[int, ...]] = []
    with torch.device("meta"):
        network = make_network("attention_bcdu", 1, 3)
        for block in network.contracting:
            block.register_forward_hook(lambda _block, _inputs, output: shapes.append(tuple(output.shape[1:])))
        assert network(torch.rand(1, 1, 512, 512)).shape == (1, 3, 512, 512)
    assert shapes == [(64 * 2**depth, 512 // 2**depth, 512 // 2**depth) for depth in range(5)]
    assert len(network.gates) == 4


def test_conv_lstm_against_the_equations() -> None:
    torch.manual_seed(2)
    lstm = ConvLstm(2, 3)
    with torch.no_grad():
        lstm.gates.weight[:, :, [0, 0, 0, 1, 1, 2, 2, 2], [0, 1, 2, 0, 2, 0, 1, 2]] = 0  # then a pixel sees only itself
    sequence = [torch.randn(1, 2, 4, 5) for _ in range(3)]
    weight, bias = lstm.gates.weight[:, :, 1, 1], lstm.gates.bias
    state = memory = torch.zeros(3)
    for features in sequence:
        enter, forget, leave, candidate = (weight @ torch.cat([features[0, :, 1, 2], state]) + bias).view(4, 3)
        memory = forget.sigmoid() * memory + enter.sigmoid() * candidate.tanh()
        state = leave.sigmoid() * memory.tanh()
    torch.testing.assert_close(lstm(sequence)[0, :, 1, 2], state)


def test_both_directions_are_read() -> None:
    torch.manual_seed(3)
    lstm = BidirectionalConvLstm(2, 2)
    first, second = torch.randn(2, 1, 2, 4, 4)
    found = lstm([first, second])
    swapped = BidirectionalConvLstm(2, 2)
    swapped.onward, swapped.backward_, swapped.join = lstm.backward_, lstm.onward, lstm.join
    assert not torch.allclose(found, lstm([second, first]))
    halves = lstm.join.weight[:, [2, 3, 0, 1]]
    with torch.no_grad():
        swapped.join.weight.copy_(halves)
    torch.testing.assert_close(swapped([second, first]), found)


def test_a_gate_scales_the_skip_connection_between_nothing_and_itself() -> None:
    torch.manual_seed(4)
    gate = AttentionGate(4, 8)
    skip, gating = torch.rand(2, 4, 16, 12) + 0.1, torch.randn(2, 8, 8, 6)
    ratio = gate(skip, gating) / skip
    assert float(ratio.detach().min()) > 0 and float(ratio.detach().max()) < 1
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio))  # one weight a pixel, for all channels
    order: list[torch.Tensor] = []
    gate.merge.register_forward_pre_hook(lambda _merge, inputs: order.extend(inputs[0]))
    gate(skip, gating)
    torch.testing.assert_close(order[0], gate.of_gating(gating))
    torch.testing.assert_close(order[1], gate.of_skip(skip))


def test_every_weight_learns() -> None:
    network = AttentionBcduNet(1, 3, base_width=2)
    network(torch.rand(2, 1, 32, 32)).square().mean().backward()
    still = [name for name, weight in network.named_parameters() if weight.grad is None]
    assert not still
