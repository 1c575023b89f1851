from __future__ import annotations

from dataclasses import replace

import pytest

from schema.outputs import OutputKind
from worker.results.outputs.identifiers import ResultIdentifiers, keyed_uid, pseudonymous_uid

BASE = ResultIdentifiers(b"k" * 32, "1.2.3", "c" * 64, "b" * 64, 1)


def test_the_same_result_has_the_same_uids() -> None:
    again = ResultIdentifiers(b"k" * 32, "1.2.3", "c" * 64, "b" * 64, 1)
    for kind in OutputKind:
        assert again.instance(kind) == BASE.instance(kind)
        assert again.series(kind) == BASE.series(kind)


@pytest.mark.parametrize(
    "change",
    [
        {"site_key": b"l" * 32},
        {"source_uid": "1.2.4"},
        {"content_hash": "d" * 64},
        {"bundle": "e" * 64},
        {"revision": 2},
    ],
    ids=lambda change: next(iter(change)),
)
def test_another_result_has_other_uids(change: dict[str, object]) -> None:
    other = replace(BASE, **change)
    for kind in OutputKind:
        assert other.instance(kind) != BASE.instance(kind)
        assert other.series(kind) != BASE.series(kind)
        assert other.inner(kind, "a") != BASE.inner(kind, "a")


def test_kinds_parts_and_levels_do_not_share_a_uid() -> None:
    made = [BASE.instance(kind, part) for kind in OutputKind for part in ("", "a", "b")]
    made += [BASE.series(kind) for kind in OutputKind]
    made += [BASE.inner(kind, "a") for kind in OutputKind]
    assert len(set(made)) == len(made)


def test_uids_are_valid_and_parts_cannot_run_together() -> None:
    for number in range(50):
        uid = keyed_uid(b"k" * 32, str(number))
        assert uid.startswith("2.25.")
        assert len(uid) <= 64
        assert int(uid.removeprefix("2.25.")) < 1 << 128
    assert keyed_uid(b"k", "ab", "c") != keyed_uid(b"k", "a", "bc")


def test_a_pseudonym_is_not_the_uid_of_a_result() -> None:
    assert pseudonymous_uid(b"k" * 32, "1.2.3") == pseudonymous_uid(b"k" * 32, "1.2.3")
    assert pseudonymous_uid(b"k" * 32, "1.2.3") != pseudonymous_uid(b"l" * 32, "1.2.3")
