from __future__ import annotations

import struct
import zlib
from io import BytesIO

import dicom_files
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset

from worker.errors import FilmError
from worker.film import elements as module
from worker.film.elements import Elements, read_elements, read_items

ROWS, CLASS, COMMENTS = 0x00280010, 0x00080016, 0x00104000
WANTED = frozenset({ROWS, CLASS})


def read(data: bytes, wanted=WANTED) -> Elements:
    return read_elements(BytesIO(data), len(data), wanted)


def refused(data: bytes) -> str:
    with pytest.raises(FilmError) as caught:
        read(data)
    return caught.value.code


def nested(depth: int) -> Dataset:
    inner = Dataset()
    inner.PatientComments = "bottom"
    for _ in range(depth):
        outer = Dataset()
        outer.RequestAttributesSequence = [inner]
        inner = outer
    return inner


@pytest.mark.parametrize("syntax", dicom_files.SYNTAXES)
def test_agrees_with_pydicom_in_every_syntax(syntax: str) -> None:
    bits = 8 if syntax == dicom_files.JPEG else 12
    dataset = dicom_files.make_dataset(dicom_files.chest_pixels(bits=bits), BitsStored=bits, HighBit=bits - 1)
    data = dicom_files.to_bytes(dicom_files.encode(dataset, syntax))
    reference = pydicom.dcmread(BytesIO(data), stop_before_pixels=True)
    tags = {int(element.tag) for element in reference if element.VR != "SQ"}
    found = read(data, tags)
    assert set(found.values) == tags
    assert found.transfer_syntax_uid == syntax
    for element in reference:
        raw = pydicom.dataset.Dataset.get_item(reference, element.tag)
        if getattr(raw, "value", None).__class__ is bytes:
            assert found.values[int(element.tag)].data == raw.value
    assert found.values[CLASS].data.rstrip(b"\0").decode() == reference.SOPClassUID


def test_what_is_no_dicom() -> None:
    assert refused(b"") == "EMPTY_FILE"
    assert refused(b"Read me first.\n" * 40) == "NOT_DICOM"
    assert refused(b"PK\x03\x04" + bytes(300)) == "NOT_DICOM"
    assert refused(b"\x89PNG\r\n\x1a\n" + bytes(300)) == "NOT_DICOM"
    assert refused(bytes(5000)) == "NOT_DICOM"
    assert refused(b"x") == "NOT_DICOM"


def test_a_dicomdir_is_not_a_film() -> None:
    dataset = dicom_files.make_dataset(dicom_files.chest_pixels(), SOPClassUID="1.2.840.10008.1.3.10")
    dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.1.3.10"
    assert refused(dicom_files.to_bytes(dataset)) == "NOT_DICOM"


def test_without_preamble_and_without_meta() -> None:
    data = dicom_files.to_bytes(dicom_files.make_dataset(dicom_files.chest_pixels(50, 40)))
    assert struct.unpack("<H", read(data[132:]).values[ROWS].data) == (50,)
    start = data.index(b"\x08\x00\x16\x00UI")
    bare = read(data[start:])
    assert struct.unpack("<H", bare.values[ROWS].data) == (50,)
    assert bare.transfer_syntax_uid == dicom_files.EXPLICIT


@pytest.mark.parametrize("syntax", dicom_files.NATIVE_SYNTAXES[:3])
def test_a_missing_transfer_syntax_is_told_from_the_elements(syntax: str) -> None:
    dataset = dicom_files.encode(dicom_files.make_dataset(dicom_files.chest_pixels()), syntax)
    data = dicom_files.to_bytes(dataset)
    start = data.index(b"\x02\x00\x10\x00UI")
    (length,) = struct.unpack_from("<H", data, start + 6)
    found = read(data[:start] + data[start + 8 + length :])
    assert found.transfer_syntax_uid == syntax
    assert found.values[ROWS].data


def test_implicit_elements_under_an_explicit_syntax() -> None:
    dataset = dicom_files.encode(dicom_files.make_dataset(dicom_files.chest_pixels(50, 40)), dicom_files.IMPLICIT)
    data = dicom_files.to_bytes(dataset)
    implicit, explicit = b"1.2.840.10008.1.2\0", b"1.2.840.10008.1.2.1\0"
    place = data.index(b"\x02\x00\x10\x00UI")
    data = (
        data[:place]
        + b"\x02\x00\x10\x00UI"
        + struct.pack("<H", len(explicit))
        + explicit
        + data[place + 8 + len(implicit) :]
    )
    assert struct.unpack("<H", read(data).values[ROWS].data) == (50,)


@pytest.mark.parametrize("undefined", [False, True])
def test_sequences_300_deep_are_walked_without_recursion(undefined: bool) -> None:
    body = b""
    for _ in range(300):
        if undefined:
            body = (
                b"\x40\x00\x75\x02SQ\0\0\xff\xff\xff\xff"
                + b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
                + body
                + b"\xfe\xff\x0d\xe0\0\0\0\0"
                + b"\xfe\xff\xdd\xe0\0\0\0\0"
            )
        else:
            item = b"\xfe\xff\x00\xe0" + struct.pack("<L", len(body)) + body
            body = b"\x40\x00\x75\x02SQ\0\0" + struct.pack("<L", len(item)) + item
    data = dicom_files.to_bytes(dicom_files.make_dataset(dicom_files.chest_pixels(50, 40)))
    place = data.index(b"\x28\x00\x02\x00US")
    assert struct.unpack("<H", read(data[:place] + body + data[place:]).values[ROWS].data) == (50,)


def test_private_sequences_of_unknown_representation_are_implicit_inside() -> None:
    inside = b"\x28\x00\x10\x00" + struct.pack("<LH", 2, 7)
    body = (
        b"\x09\x00\x10\x00LO\x04\x00ACME"
        + b"\x09\x00\x01\x10UN\0\0\xff\xff\xff\xff"
        + b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
        + inside
        + b"\xfe\xff\x0d\xe0\0\0\0\0"
        + b"\xfe\xff\xdd\xe0\0\0\0\0"
    )
    data = dicom_files.to_bytes(dicom_files.make_dataset(dicom_files.chest_pixels(50, 40)))
    place = data.index(b"\x10\x00\x10\x00PN")
    found = read(data[:place] + body + data[place:], {*WANTED, 0x00091001})
    assert struct.unpack("<H", found.values[ROWS].data) == (50,)
    items = read_items(found.values[0x00091001], found.encoding, {ROWS})
    assert [item[ROWS].data for item in items] == [struct.pack("<H", 7)]


@pytest.mark.parametrize("undefined", [False, True])
@pytest.mark.parametrize("syntax", dicom_files.NATIVE_SYNTAXES)
def test_items_of_a_sequence(syntax: str, undefined: bool) -> None:
    dataset = dicom_files.make_dataset(dicom_files.chest_pixels())
    first, second = Dataset(), Dataset()
    first.Rows, second.Rows = 3, 4
    for item in (first, second):
        item.is_undefined_length_sequence_item = undefined
    dataset.add_new(0x00283010, "SQ", [first, second])
    dataset[0x00283010].is_undefined_length = undefined
    data = dicom_files.to_bytes(dicom_files.encode(dataset, syntax))
    found = read(data, {*WANTED, 0x00283010})
    order = ">" if found.encoding.big_endian else "<"
    items = read_items(found.values[0x00283010], found.encoding, {ROWS})
    assert [struct.unpack(order + "H", item[ROWS].data)[0] for item in items] == [3, 4]


def test_a_truncated_header() -> None:
    data = dicom_files.to_bytes(dicom_files.make_dataset(dicom_files.chest_pixels()))
    end = data.index(b"\xe0\x7f\x10\x00")
    codes = {refused(data[:cut]) for cut in (132, 140, 200, end - 1)}
    assert codes == {"TRUNCATED_HEADER"}


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_no_prefix_and_no_damage_raises_anything_but_a_film_error(data: st.DataObject) -> None:
    content = bytearray(DAMAGED)
    for _ in range(data.draw(st.integers(0, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(content)))
    try:
        found = read(bytes(content[:cut]))
    except FilmError as error:
        assert error.code in {"EMPTY_FILE", "NOT_DICOM", "TRUNCATED_HEADER", "BAD_HEADER", "FILE_TOO_LARGE"}
    else:
        assert set(found.values) <= WANTED


def _damaged() -> bytes:
    dataset = dicom_files.make_dataset(dicom_files.chest_pixels(8, 8))
    dataset.RequestAttributesSequence = [nested(3)]
    dataset["RequestAttributesSequence"].is_undefined_length = True
    return dicom_files.to_bytes(dataset)


DAMAGED = _damaged()


def test_a_deflate_bomb_is_refused_quickly() -> None:
    data = dicom_files.to_bytes(dicom_files.make_dataset(dicom_files.chest_pixels()))
    start = data.index(b"\x08\x00\x16\x00UI")
    comments = b"\x10\x00\x00\x40UT\0\0" + struct.pack("<L", 0x7FFFFFF0)
    engine = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    packed = engine.compress(data[start : data.index(b"\x18\x00\x15\x00CS")] + comments)
    zeros = bytes(1 << 20)
    packed += b"".join(engine.compress(zeros) for _ in range(300)) + engine.flush()
    meta = dicom_files.to_bytes(
        dicom_files.encode(dicom_files.make_dataset(dicom_files.chest_pixels()), dicom_files.DEFLATED)
    )
    (length,) = struct.unpack_from("<L", meta, 140)
    bomb = meta[: 144 + length] + packed
    assert len(bomb) < 1 << 20
    assert refused(bomb) == "FILE_TOO_LARGE"


def test_deflated_header_does_not_need_the_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_HEADER_INFLATED_BYTES", 4096)
    dataset = dicom_files.make_dataset(dicom_files.chest_pixels(300, 300, seed=4))
    data = dicom_files.to_bytes(dicom_files.encode(dataset, dicom_files.DEFLATED))
    found = read(data)
    assert found.inflated is not None and len(found.inflated) == 4096
    assert struct.unpack("<H", found.values[ROWS].data) == (300,)


def test_endless_small_elements_are_refused() -> None:
    data = dicom_files.to_bytes(dicom_files.make_dataset(dicom_files.chest_pixels()))
    place = data.index(b"\x10\x00\x10\x00PN")
    assert refused(data[:place] + b"\x09\x00\x10\x00LO\0\0" * 250_000 + data[place:]) == "BAD_HEADER"
