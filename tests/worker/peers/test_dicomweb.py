from __future__ import annotations

import logging
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from dicom_files import chest_pixels, make_dataset
from server_process import free_port
from web_archive import Answer, WebArchive, multipart

pytest.importorskip("requests")

from worker.peers import dicomweb
from worker.peers.configuration import Certificates, WebPeer
from worker.peers.dicomweb import DicomWeb, text_of
from worker.peers.trouble import PeerError

STUDY = "0020000D"


def encoded(dataset: Any) -> bytes:
    stream = BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def film(**attributes: Any) -> bytes:
    return encoded(make_dataset(chest_pixels(40, 30), **attributes))


def failure(web: DicomWeb, *path: str) -> PeerError:
    with pytest.raises(PeerError) as failed:
        list(web.search(*(path or ("studies",))))
    return failed.value


@pytest.mark.parametrize("heeds_paging", [True, False])
def test_every_answer_comes_once_however_the_archive_pages(heeds_paging: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dicomweb, "PAGE", 2)
    films = [film() for _ in range(5)]
    with WebArchive(films, heeds_paging=heeds_paging) as archive, DicomWeb(WebPeer(archive.url)) as web:
        found = [text_of(study, STUDY) for study in web.search("studies")]
    assert len(found) == len(set(found)) == 5


def test_an_archive_that_does_not_know_offset_ends_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dicomweb, "PAGE", 2)
    page = b'[{"0020000D": {"vr": "UI", "Value": ["1.1"]}}, {"0020000D": {"vr": "UI", "Value": ["1.2"]}}]'
    with WebArchive(fault=lambda *_: Answer(body=page)) as archive, DicomWeb(WebPeer(archive.url)) as web:
        assert [text_of(study, STUDY) for study in web.search("studies")] == ["1.1", "1.2"]


def test_nothing_found_and_attributes_without_a_value() -> None:
    with WebArchive(fault=lambda *_: Answer(204)) as archive, DicomWeb(WebPeer(archive.url)) as web:
        assert list(web.search("studies")) == []
    assert [text_of(item, STUDY) for item in ({}, {STUDY: {"vr": "UI"}}, {STUDY: {"Value": [None]}})] == [""] * 3


@pytest.mark.parametrize("chunk", [1, 7, 1 << 18])
def test_an_object_arrives_as_the_archive_keeps_it(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dicomweb, "_CHUNK", chunk)
    # What looks like an end in the middle of the pixels is none.
    content = film()[: 600 if chunk == 1 else None] + b"\r\n--b0un" + b"\r\n--b0undary" + bytes(100)
    with WebArchive(fault=lambda *_: multipart([content])) as archive, DicomWeb(WebPeer(archive.url)) as web:
        out = BytesIO()
        assert web.retrieve("1", "2", "3", out) == len(content)
        assert out.getvalue() == content


def test_an_object_that_stands_alone_is_taken_too() -> None:
    alone = Answer(body=b"x" * 1000, content_type="application/dicom")
    with WebArchive(fault=lambda *_: alone) as archive, DicomWeb(WebPeer(archive.url)) as web:
        assert web.retrieve("1", "2", "3", BytesIO()) == 1000


def retrieval(answer: Answer) -> str:
    with (
        WebArchive(fault=lambda *_: answer) as archive,
        DicomWeb(WebPeer(archive.url)) as web,
        pytest.raises(PeerError) as failed,
    ):
        web.retrieve("1", "2", "3", BytesIO())
    return f"{failed.value.code} {failed.value.detail}"


def test_an_object_that_ends_too_early_is_no_object(monkeypatch: pytest.MonkeyPatch) -> None:
    cut = multipart([film()])
    cut.body = cut.body[:-20]
    assert retrieval(cut) == "NO_ANSWER the object ends too early"
    assert retrieval(Answer(body=b"nothing of the kind", content_type="multipart/related")).startswith("SERVER_ERROR")
    monkeypatch.setattr(dicomweb, "MAX_OBJECT_BYTES", 100)
    monkeypatch.setattr(dicomweb, "_CHUNK", 64)
    assert retrieval(multipart([film()])) == "REFUSED the object is larger than a radiograph can be"


def test_an_object_that_is_gone_says_nothing_about_the_archive() -> None:
    with WebArchive() as archive, DicomWeb(WebPeer(archive.url)) as web, pytest.raises(PeerError) as gone:
        web.retrieve("1", "2", "3", BytesIO())
    assert gone.value.code == "OBJECT_GONE"


def test_what_is_stored_arrives_bit_by_bit_and_each_object_has_its_answer() -> None:
    objects = [make_dataset(chest_pixels(40, 30)) for _ in range(3)]
    uids = [str(each.SOPInstanceUID) for each in objects]
    with WebArchive() as archive, DicomWeb(WebPeer(archive.url)) as web:
        assert web.store(objects) is None
        assert [encoded(each) for each in archive.stored] == [encoded(each) for each in objects]
        archive.refused = {uids[1]: 0xA900}
        some = web.store(objects)
        archive.refused = dict.fromkeys(uids, 0xC001)
        none = web.store(objects)
        archive.refused = {uids[0]: 0x0111}
        again = web.store(objects)
    assert (some and some.code, none and none.code, again) == ("DATA_MISMATCH", "CANNOT_UNDERSTAND", None)


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (Answer(409), "REFUSED"),
        (Answer(200, b"{}"), "SERVER_ERROR"),
        (Answer(500), "SERVER_ERROR"),
        (Answer(503), "OUT_OF_RESOURCES"),
        (Answer(200, b"<html>", "text/html"), "WRONG_ADDRESS"),
        (Answer(302), "WRONG_ADDRESS"),
    ],
)
def test_a_store_without_a_word_for_the_object_did_not_happen(answer: Answer, code: str) -> None:
    with WebArchive(fault=lambda *_: answer) as archive, DicomWeb(WebPeer(archive.url)) as web:
        try:
            trouble = web.store([make_dataset(chest_pixels(40, 30))])
        except PeerError as error:
            trouble = error
    assert trouble is not None and trouble.code == code


def test_token_and_password_go_with_every_request(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s3cret\n")
    with WebArchive() as archive:
        with DicomWeb(WebPeer(archive.url, token_file=tmp_path / "secret")) as web:
            web.check()
        with DicomWeb(WebPeer(archive.url, user="me", password_file=tmp_path / "secret")) as web:
            web.check()
    assert [sent["Authorization"] for sent in archive.headers] == ["Bearer s3cret", "Basic bWU6czNjcmV0"]
    for missing in (
        WebPeer(archive.url, token_file=tmp_path / "absent"),
        WebPeer(archive.url, certificates=Certificates(ca_file=tmp_path / "absent")),
    ):
        with pytest.raises(PeerError) as refused:
            DicomWeb(missing)
        assert refused.value.code == "SECRET_MISSING"


def test_trouble_with_the_connection_has_a_code_and_no_identifier_anywhere(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    nobody = WebPeer(f"http://127.0.0.1:{free_port()}/d", timeout_seconds=0.2)
    with DicomWeb(nobody) as web:
        absent = failure(web, "studies", "1.2.826.777", "series")
    with WebArchive(fault=lambda *_: Answer(body=b"[{]")) as archive, DicomWeb(WebPeer(archive.url)) as web:
        garbled = failure(web, "studies", "1.2.826.777", "series")
    with WebArchive(fault=lambda *_: Answer(401, b"1.2.826.777")) as archive, DicomWeb(WebPeer(archive.url)) as web:
        closed = failure(web, "studies", "1.2.826.777", "series")
    assert [error.code for error in (absent, garbled, closed)] == ["UNREACHABLE", "WRONG_ADDRESS", "NOT_AUTHORISED"]
    assert not any("777" in text for text in (caplog.text, str(absent), str(garbled), str(closed)))
    assert all(error.__cause__ is None for error in (absent, garbled, closed))


def test_plain_text_where_encryption_is_expected() -> None:
    with WebArchive() as archive, DicomWeb(WebPeer(archive.url.replace("http:", "https:"))) as web:
        assert failure(web).code == "TLS_FAILED"
