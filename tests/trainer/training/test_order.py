"""The order films are seen in."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

from hypothesis import given
from hypothesis import strategies as st

from trainer.training.order import FilmOrder

_FILMS = st.integers(1, 23)
_BATCH = st.sampled_from([2, 4, 6])
_BATCHES = st.integers(1, 7)
_SEED = st.integers(0, 1000)


@given(_FILMS, _BATCH, _BATCHES, _SEED, st.integers(0, 9))
def test_passes_follow_each_other_without_gaps(films: int, batch: int, batches: int, seed: int, epochs: int) -> None:
    order = FilmOrder(films, batch, batches, seed)
    seen = []
    for epoch in range(epochs):
        order.set_epoch(epoch)
        seen += list(order)
    assert len(seen) == epochs * batches * batch
    for number in range(len(seen) // films):
        one_pass = seen[number * films : (number + 1) * films]
        assert {times for times, _ in one_pass} == {number}
        assert sorted(film for _, film in one_pass) == list(range(films))


@given(_FILMS, _BATCH, _BATCHES, _SEED, st.integers(0, 5))
def test_an_epoch_depends_on_nothing_before_it(films: int, batch: int, batches: int, seed: int, epoch: int) -> None:
    gone_through = FilmOrder(films, batch, batches, seed)
    for earlier in range(epoch):
        gone_through.set_epoch(earlier)
        list(gone_through)
    gone_through.set_epoch(epoch)
    assert list(gone_through) == list(FilmOrder(films, batch, batches, seed, epoch=epoch))


@given(_FILMS, _BATCHES, _SEED, st.sampled_from([1, 2, 3, 6]))
def test_devices_share_the_same_batches(films: int, batches: int, seed: int, world: int) -> None:
    whole = list(FilmOrder(films, 6, batches, seed))
    shares = [list(FilmOrder(films, 6, batches, seed, rank=rank, world=world)) for rank in range(world)]
    share = 6 // world
    together = [key for batch in range(batches) for part in shares for key in part[batch * share : (batch + 1) * share]]
    assert together == whole
    assert len(FilmOrder(films, 6, batches, seed, world=world)) == len(shares[0])


def test_seeds_differ() -> None:
    assert list(FilmOrder(50, 2, 25, 1)) != list(FilmOrder(50, 2, 25, 2))


def test_a_batch_that_cannot_be_shared_is_refused() -> None:
    with pytest.raises(ValueError, match="3 devices"):
        FilmOrder(10, 4, 2, 1, world=3)
