from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schema.keys import is_held_out
from trainer.data.records import PARTS, FilmRecord
from trainer.data.splits import Split, age_group, check_no_patient_crosses, choose_films, split
from trainer.errors import DataError
from trainer.recipe import SplitTable

YEAR = 365.25
FINDINGS = ("pneumonia", "bronchitis", "no_finding")


def film(number: int, patient: str = "", **known: object) -> FilmRecord:
    return FilmRecord(f"film-{number:04d}", None, None, patient or f"p{number}", **known)  # type: ignore[arg-type]


@st.composite
def data_sets(draw: st.DrawFn, least: int = 60) -> list[FilmRecord]:
    seed = draw(st.integers(0, 2**32 - 1))
    count = draw(st.integers(least, 160))
    patients = draw(st.integers(count // 2, count))
    rng = np.random.default_rng(seed)
    rates = rng.uniform(0.05, 0.5, len(FINDINGS))
    return [
        film(
            number,
            f"p{rng.integers(patients)}",
            findings={name: bool(rng.random() < rate) for name, rate in zip(FINDINGS, rates, strict=True)},
            age_days=None if rng.random() < 0.1 else float(rng.uniform(0, 16 * YEAR)),
            group=f"g{rng.integers(count)}" if rng.random() < 0.1 else "",
            truth_kind="label_map" if rng.random() < 0.7 else "",
        )
        for number in range(count)
    ]


def names(records: list[FilmRecord], chosen: Split) -> dict[str, set[str]]:
    return {part: {records[i].name for i in chosen.part(part)} for part in PARTS}


@settings(max_examples=60, deadline=None)
@given(records=data_sets(), seed=st.integers(0, 5))
def test_every_film_is_in_one_part_and_no_patient_or_group_in_two(records: list[FilmRecord], seed: int) -> None:
    chosen = split(records, SplitTable(seed=seed))
    everywhere = [index for part in PARTS for index in chosen.part(part)]
    assert sorted(everywhere) == list(range(len(records)))
    where = {index: part for part in PARTS for index in chosen.part(part)}
    for key in ("patient", "group"):
        parts: dict[str, set[str]] = {}
        for index, record in enumerate(records):
            if getattr(record, key):
                parts.setdefault(getattr(record, key), set()).add(where[index])
        assert all(len(found) == 1 for found in parts.values())


@settings(max_examples=60, deadline=None)
@given(records=data_sets(), seed=st.integers(0, 5))
def test_shares_and_findings_are_met(records: list[FilmRecord], seed: int) -> None:
    table = SplitTable(seed=seed)
    chosen = split(records, table)
    largest = max(Counter(record.patient for record in records).values())
    for part in PARTS:
        share = getattr(table, part)
        assert abs(len(chosen.part(part)) - share * len(records)) <= 2 * largest + 4
        for finding in FINDINGS:
            shown = sum(bool(record.findings[finding]) for record in records)
            here = sum(bool(records[i].findings[finding]) for i in chosen.part(part))
            assert abs(here - share * shown) <= 2 * largest + 4


@settings(max_examples=30, deadline=None)
@given(records=data_sets(), seed=st.integers(0, 5), order=st.integers(0, 2**32))
def test_the_order_of_the_films_does_not_matter(records: list[FilmRecord], seed: int, order: int) -> None:
    shuffled = list(records)
    random.Random(order).shuffle(shuffled)
    table = SplitTable(seed=seed)
    assert names(records, split(records, table)) == names(shuffled, split(shuffled, table))


@settings(max_examples=20, deadline=None)
@given(records=data_sets(), folds=st.integers(2, 6))
def test_folds_test_every_film_once(records: list[FilmRecord], folds: int) -> None:
    tested: Counter[int] = Counter()
    for fold in range(folds):
        chosen = split(records, SplitTable(folds=folds, fold=fold))
        tested.update(chosen.test)
        assert chosen.train and chosen.validation
        assert sorted(chosen.train + chosen.validation + chosen.test) == list(range(len(records)))
    assert tested == Counter(range(len(records)))


@settings(max_examples=20, deadline=None)
@given(records=data_sets(), folds=st.sampled_from([0, 3]))
def test_held_out_patients_are_the_test_part(records: list[FilmRecord], folds: int) -> None:
    chosen = split(records, SplitTable(held_out=True, folds=folds))
    kept_out = {i for i, record in enumerate(records) if is_held_out(record.patient)}
    grouped = {records[i].group for i in kept_out if records[i].group}
    assert kept_out <= set(chosen.test)
    assert all(i in kept_out or grouped for i in chosen.test)
    assert chosen.validation


def test_a_seed_gives_one_split_and_another_seed_another() -> None:
    records = [film(number) for number in range(100)]
    assert split(records, SplitTable(seed=1)) == split(records, SplitTable(seed=1))
    assert split(records, SplitTable(seed=1)) != split(records, SplitTable(seed=2))


def test_every_part_gets_patients_with_many_films() -> None:
    records = [film(number, f"p{number // 10}" if number < 400 else "") for number in range(800)]
    chosen = split(records, SplitTable())
    for part in PARTS:
        many = sum(index < 400 for index in chosen.part(part)) / len(chosen.part(part))
        assert 0.3 < many < 0.7


def test_parts_the_data_set_fixes_are_kept_and_bring_the_patients_other_films() -> None:
    records = [film(number) for number in range(100)]
    records[3] = replace(records[3], part="test", patient="one")
    records[4] = replace(records[4], patient="one")
    records[5] = replace(records[5], part="train", group="copies")
    records[6] = replace(records[6], group="copies")
    chosen = split(records, SplitTable())
    assert chosen.test == (3, 4)
    assert {5, 6} <= set(chosen.train)
    assert len(chosen.validation) == pytest.approx(98 * 0.15 / 0.85, abs=2)


def test_folds_beside_a_fixed_test_part_take_turns_in_validating() -> None:
    records = [film(number, part="test" if number < 10 else "") for number in range(70)]
    chosen = split(records, SplitTable(folds=3, fold=1))
    assert chosen.test == tuple(range(10))
    assert len(chosen.validation) == 20 and len(chosen.train) == 40


def test_a_patient_fixed_to_two_parts_is_refused_by_film_names() -> None:
    records = [film(number) for number in range(50)]
    records[7] = replace(records[7], patient="secret", part="train")
    records[9] = replace(records[9], patient="secret", part="test")
    with pytest.raises(DataError, match=r"film-0007 \(train\), film-0009 \(test\)") as refused:
        split(records, SplitTable())
    assert "secret" not in str(refused.value)


def test_a_crossing_patient_is_found_and_not_named() -> None:
    records = [film(0, "secret"), film(1, "other"), film(2, "secret")]
    check_no_patient_crosses(records, Split((0, 2), (1,), ()))
    with pytest.raises(DataError, match=r"patient is in two parts: film-0000 \(train\), film-0002 \(test\)") as refused:
        check_no_patient_crosses(records, Split((0,), (1,), (2,)))
    assert "secret" not in str(refused.value)


def test_a_crossing_copy_is_found() -> None:
    records = [film(0, group="g"), film(1), film(2, group="g")]
    with pytest.raises(DataError, match="duplicates is in two parts: film-0000"):
        check_no_patient_crosses(records, Split((0,), (1,), (2,)))


@pytest.mark.parametrize("count", [3, 5, 8])
def test_few_patients_still_make_three_parts(count: int) -> None:
    chosen = split([film(number) for number in range(count)], SplitTable())
    assert all(chosen.part(part) for part in PARTS) and len(chosen.train) >= count - 2 - count // 4


@pytest.mark.parametrize("count", [1, 2])
def test_an_empty_part_is_refused(count: int) -> None:
    with pytest.raises(DataError, match=f"part is empty: {count} independent"):
        split([film(number) for number in range(count)], SplitTable())


def test_one_patient_in_many_films_leaves_parts_empty() -> None:
    with pytest.raises(DataError, match="validation part is empty: 1 independent"):
        split([film(number, "one") for number in range(100)], SplitTable())


def test_a_part_whose_share_is_nothing_may_be_empty() -> None:
    chosen = split([film(number) for number in range(20)], SplitTable(train=0.8, validation=0.2, test=0.0))
    assert chosen.test == () and len(chosen.train) == 16


def test_two_films_of_one_name_are_refused() -> None:
    with pytest.raises(DataError, match="Two films are called film-0001"):
        split([film(1), film(1)], SplitTable())


def test_fewer_films_are_a_choice_within_more() -> None:
    records = [film(number) for number in range(50)]
    few, more = (choose_films(range(10, 50), count, records, 7) for count in (5, 20))
    assert len(few) == 5 and set(few) < set(more) < set(range(10, 50))
    assert choose_films(range(10, 50), 0, records, 7) == tuple(range(10, 50))
    assert choose_films(range(10, 50), 99, records, 7) == tuple(range(10, 50))
    assert choose_films(range(10, 50), 5, records, 8) != few


def test_age_groups_part_at_five_years() -> None:
    assert [age_group(age) for age in (None, 0.0, 5 * YEAR - 1, 5 * YEAR)] == ["unknown", "0-4", "0-4", "5+"]


def test_a_data_set_that_fixes_every_part_is_taken_as_it_is() -> None:
    records = [film(number, part=PARTS[number % 3]) for number in range(9)]
    assert split(records, SplitTable()) == Split((0, 3, 6), (1, 4, 7), (2, 5, 8))
