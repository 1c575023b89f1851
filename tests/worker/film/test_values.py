from __future__ import annotations

from datetime import date, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.errors import FilmError
from worker.film import values
from worker.film.elements import Encoding, Value

LITTLE, BIG = Encoding(False, False), Encoding(False, True)


def written(content: bytes | str, vr: bytes = b"LO") -> Value:
    return Value(vr, content.encode() if isinstance(content, str) else content)


@pytest.mark.parametrize(
    ("age", "days"),
    [("005Y", 1826), ("5Y", 1826), ("0000005Y", 1826), ("018M", 547), ("003W", 21), ("010D", 10), ("010d ", 10),
     ("62", None), ("", None), ("Y", None), ("-05Y", None), ("5 Y", None), ("005Y\\006Y", None)],
)  # fmt: skip
def test_age_strings(age: str, days: int | None) -> None:
    assert values.age_in_days(written(age), None, None) == (days, False)


def test_the_dates_are_preferred_to_the_age_string() -> None:
    assert values.age_in_days(written("005Y"), written("20190101"), written("20240301")) == (1886, False)
    assert values.age_in_days(None, written("20240228"), written("20240301")) == (2, False)


@pytest.mark.parametrize(
    ("age", "born", "studied"),
    [("045Y", "20190101", "20240301"), ("", "19000101", "20240301"), ("005Y", "19000101", "20240301"),
     ("131Y", "", ""), ("", "18800101", "20240301"), ("", "20250101", "20240301")],
)  # fmt: skip
def test_contradictory_ages_are_none_and_said(age: str, born: str, studied: str) -> None:
    assert values.age_in_days(written(age), written(born), written(studied)) == (None, True)


@settings(max_examples=100)
@given(st.dates(date(1990, 1, 1), date(2030, 1, 1)), st.integers(0, 40_000))
def test_an_honest_age_string_never_contradicts_the_dates(studied: date, days: int) -> None:
    born = studied - timedelta(days)
    if born in (date(1900, 1, 1),) or born.year < 1901:
        return
    dates = written(born.strftime("%Y%m%d")), written(studied.strftime("%Y%m%d"))
    years = studied.year - born.year - ((studied.month, studied.day) < (born.month, born.day))
    assert values.age_in_days(written(f"{years:03}Y"), *dates) == (days, False)
    if days < 999:
        assert values.age_in_days(written(f"{days:03}D"), *dates) == (days, False)
        assert values.age_in_days(written(f"{days // 7:03}W"), *dates) == (days, False)


@pytest.mark.parametrize("bad", ["20240230", "2024", "99999999", "yesterday", "20240101-20240201", "2024.01-01"])
def test_impossible_dates(bad: str) -> None:
    assert values.calendar_date(written(bad)) is None


def test_old_and_new_dates() -> None:
    assert values.calendar_date(written("20240301 ")) == values.calendar_date(written("2024.03.01")) == date(2024, 3, 1)


@pytest.mark.parametrize(
    ("content", "numbers"),
    [("", []), (" \0", []), ("1.5", [1.5]), ("1.5\\-2e3 ", [1.5, -2000.0]), ("abc", None), ("1,5", None),
     ("1\\", None), ("nan", None), ("inf", None)],
)  # fmt: skip
def test_decimal_strings(content: str, numbers: list[float] | None) -> None:
    assert values.decimals(written(content, b"DS")) == numbers


def test_one_integer_in_any_representation() -> None:
    assert values.integer(written(b"\x02\x01", b"US"), LITTLE, "Rows") == 258
    assert values.integer(written(b"\x02\x01", b"US"), BIG, "Rows") == 513
    assert values.integer(written(b"\x02\x01\0\0", b"UL"), LITTLE, "Rows") == 258
    assert values.integer(written("258 ", b"IS"), LITTLE, "Rows") == 258
    assert values.integer(written(b"\x02\x01", b""), LITTLE, "Rows") == 258
    assert values.integer(None, LITTLE, "Rows") is None
    assert values.integer(written(b"", b"US"), LITTLE, "Rows") is None
    assert values.integers(written(b"\xff\xff", b"SS"), LITTLE) == [-1]


@pytest.mark.parametrize(("content", "vr"), [(b"\1\0\2\0", b"US"), (b"\1\0\2", b"US"), (b"1\\2", b"IS"), (b"x", b"IS")])
def test_several_or_unreadable_integers_are_bad_values(content: bytes, vr: bytes) -> None:
    with pytest.raises(FilmError) as caught:
        values.integer(written(content, vr), LITTLE, "Rows")
    assert caught.value.code == "BAD_VALUE" and "Rows" in caught.value.detail


def test_text_is_stripped_decoded_and_printable() -> None:
    assert values.text(written(b" A\0B \0")) == "AB"
    assert values.text(written("Müller".encode("latin-1"))) == "Müller"
    assert values.text(written("Müller".encode()), written("ISO_IR 192")) == "Müller"
    assert values.text(written("Иван".encode("iso8859_5")), written("ISO_IR 144")) == "Иван"
    assert values.text(written(b"\xff\xfe\xfd"), written("NO SUCH SET")) != ""
    assert values.text(None) == ""


@settings(max_examples=200)
@given(st.binary(max_size=80), st.binary(max_size=30), st.sampled_from([b"", b"US", b"SS", b"IS", b"DS", b"UL"]))
def test_typed_parsers_never_raise_anything_but_bad_value(content: bytes, character_set: bytes, vr: bytes) -> None:
    value = Value(vr, content)
    assert values.text(value, Value(b"CS", character_set)).isprintable()
    assert values.uid(value) == "" or len(values.uid(value)) <= 64
    values.calendar_date(value)
    values.codes(value)
    values.age_in_days(value, value, value)
    decimals = values.decimals(value)
    assert decimals is None or all(number == number for number in decimals)
    try:
        values.integer(value, LITTLE, "Rows")
        values.written_integer(value, "Frames")
    except FilmError as error:
        assert error.code == "BAD_VALUE"
