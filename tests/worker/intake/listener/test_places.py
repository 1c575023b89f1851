from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from worker.intake.listener.places import Place, Places


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def pairs() -> Iterator[list[socket.socket]]:
    opened: list[socket.socket] = []
    yield opened
    for item in opened:
        item.close()


def place(clock: Clock, pairs: list[socket.socket], *, established: bool = False) -> Place:
    ours, theirs = socket.socketpair()
    pairs.extend((ours, theirs))
    made = Place(ours, clock)
    made.established = established
    clock.now += 0.1
    return made


def test_who_never_asked_for_an_association_gives_way_oldest_first(clock: Clock, pairs: list[socket.socket]) -> None:
    places = Places(2)
    first, second, third = (place(clock, pairs) for _ in range(3))
    assert [places.take(item) for item in (first, second, third)] == [None, None, first]
    second.hear()
    assert places.take(place(clock, pairs)) is third


def test_an_association_at_work_keeps_its_place(clock: Clock, pairs: list[socket.socket]) -> None:
    places = Places(1)
    busy = place(clock, pairs, established=True)
    places.take(busy)
    with pytest.raises(BlockingIOError):
        places.take(place(clock, pairs))
    busy.begin_storing()
    clock.now += 100.0
    with pytest.raises(BlockingIOError):
        places.take(place(clock, pairs))
    assert busy.idle_seconds() == 0.0
    busy.end_storing()
    with pytest.raises(BlockingIOError):
        places.take(place(clock, pairs))
    clock.now += 3.0
    assert places.take(place(clock, pairs)) is busy


def test_a_place_that_is_left_is_free(clock: Clock, pairs: list[socket.socket]) -> None:
    places = Places(1)
    first, second = place(clock, pairs, established=True), place(clock, pairs, established=True)
    places.take(first)
    places.leave(first)
    assert places.take(second) is None
    assert places.taken() == [second]


def test_a_place_that_is_closed_ends_the_connection(clock: Clock, pairs: list[socket.socket]) -> None:
    place(clock, pairs).close()
    assert pairs[1].recv(1) == b""
