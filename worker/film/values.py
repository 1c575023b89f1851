"""Typed values of DICOM elements (PS3.5 section 6.2), tolerant where writers are known to err."""

from __future__ import annotations

import math
import re
import struct
import warnings
from collections.abc import Sequence
from datetime import date

from worker.errors import FilmError
from worker.film.elements import Encoding, Value

_PADDING = " \0\t\r\n"
_UID = re.compile(r"[0-9]+(\.[0-9]+)*")
_AGE = re.compile(r"0*([0-9]{1,5})([DWMY])", re.IGNORECASE)
_DATE = re.compile(r"([0-9]{4})([.-]?)([0-9]{2})\2([0-9]{2})")
_BINARY = {b"US": "H", b"SS": "h", b"UL": "L", b"SL": "l"}
_MAX_TEXT = 1024

#: Unit of an age string → (days, how far a rounded age may lie from the exact one, in days).
_AGE_UNITS = {"D": (1.0, 3), "W": (7.0, 14), "M": (30.4375, 62), "Y": (365.25, 400)}
MAX_AGE_DAYS = 47_450
_PLACEHOLDER_BIRTH_DATES = frozenset({date(1900, 1, 1)})


def text(value: Value | None, character_set: Value | None = None) -> str:
    """Characters without padding and control characters; "" when absent."""
    if value is None or not value.data:
        return ""
    data = value.data[:_MAX_TEXT]
    if data.isascii() and b"\x1b" not in data:
        decoded = data.decode("ascii")
    else:
        decoded = _decode(data, character_set)
    decoded = decoded.strip(_PADDING)
    if not decoded.isprintable():
        decoded = "".join(character for character in decoded if character.isprintable())
    return decoded


def code(value: Value | None) -> str:
    """The first of possibly several code strings (CS), upper case; "" when absent."""
    return text(value).split("\\", 1)[0].strip().upper()


def codes(value: Value | None) -> list[str]:
    """All code strings of a value."""
    return [part.strip().upper() for part in text(value).split("\\")] if value and value.data else []


def uid(value: Value | None) -> str:
    """A unique identifier, or "" when absent or not one (PS3.5 section 9)."""
    found = text(value)
    return found if len(found) <= 64 and _UID.fullmatch(found) else ""


def calendar_date(value: Value | None) -> date | None:
    """A date (DA, also the old ``YYYY.MM.DD``), or None when absent or impossible."""
    match = _DATE.fullmatch(text(value))
    if match is None:
        return None
    try:
        return date(int(match[1]), int(match[3]), int(match[4]))
    except ValueError:
        return None


def decimals(value: Value | None) -> list[float] | None:
    """Decimal strings (DS) as finite numbers; [] when absent or empty, None when one is malformed."""
    words = text(value)
    if not words:
        return []
    try:
        numbers = [float(word) for word in words.split("\\")]
    except ValueError:
        return None
    return numbers if all(math.isfinite(number) for number in numbers) else None


def integers(value: Value | None, encoding: Encoding, *, signed: bool = False) -> list[int] | None:
    """Binary (US, SS, UL, SL) or written (IS, DS) integers; [] when absent, None when malformed.

    An element without value representation is read as 16 bit, signed if ``signed``.
    """
    if value is None or not value.data:
        return []
    if value.vr in (b"IS", b"DS"):
        numbers = decimals(value)
        return None if numbers is None or any(n != int(n) for n in numbers) else [int(n) for n in numbers]
    letter = _BINARY.get(value.vr, "h" if signed else "H")
    width = struct.calcsize("<" + letter)
    if len(value.data) % width:
        return None
    order = ">" if encoding.big_endian else "<"
    return list(struct.unpack(f"{order}{len(value.data) // width}{letter}", value.data))


def integer(value: Value | None, encoding: Encoding, name: str) -> int | None:
    """The one integer of an attribute called ``name``; None when absent.

    Raises
    ------
    FilmError
        ``BAD_VALUE`` when there are several or none can be read.
    """
    numbers = integers(value, encoding)
    if numbers is None or len(numbers) > 1:
        raise FilmError("BAD_VALUE", f"{name} is not one whole number")
    return numbers[0] if numbers else None


def written_integer(value: Value | None, name: str) -> int | None:
    """The one integer of an attribute written in characters (IS); None when absent.

    Raises
    ------
    FilmError
        ``BAD_VALUE`` when there are several or none can be read.
    """
    written = Value(b"IS", value.data) if value is not None else None
    return integer(written, Encoding(implicit=False, big_endian=False), name)


def age_in_days(age: Value | None, birth_date: Value | None, study_date: Value | None) -> tuple[int | None, bool]:
    """Age at the study in days (0-47,450) or None, and whether the header contradicts itself.

    Birth date and study date are preferred to the rounded age string (AS). A placeholder
    birth date, an age over 130 years or below 0, and an age string that does not agree with
    the dates give None.
    """
    match = _AGE.fullmatch(text(age))
    born, studied = calendar_date(birth_date), calendar_date(study_date)
    if born in _PLACEHOLDER_BIRTH_DATES:
        return None, True
    stated = int(int(match[1]) * _AGE_UNITS[match[2].upper()][0]) if match else None
    exact = (studied - born).days if born and studied else None
    if any(days is not None and not 0 <= days <= MAX_AGE_DAYS for days in (stated, exact)):
        return None, True
    if match and stated is not None and exact is not None:
        if abs(stated - exact) > _AGE_UNITS[match[2].upper()][1]:
            return None, True
        return exact, False
    return (exact if exact is not None else stated), False


def _decode(data: bytes, character_set: Value | None) -> str:
    # Rare enough that pydicom's tables of PS3.3 C.12.1.1.2 are loaded only here.
    from pydicom.charset import convert_encodings, decode_bytes

    names: Sequence[str] = text(character_set).split("\\") if character_set else ["ISO_IR 100"]
    try:
        with warnings.catch_warnings():
            # They quote the header, which may name the patient.
            warnings.simplefilter("ignore")
            return str(decode_bytes(data, convert_encodings(list(names)), {"\\"}))
    except (LookupError, ValueError, TypeError):
        return data.decode("latin-1")
