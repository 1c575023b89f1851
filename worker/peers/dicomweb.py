"""Speak DICOMweb (PS3.18): search (QIDO-RS), retrieve (WADO-RS) and store (STOW-RS).

Written on ``requests`` and not on a DICOMweb library, because here bytes are passed on as they are,
nothing is tried twice behind the caller's back, and no identifier gets into a log.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from types import TracebackType
from typing import IO, Any, Self

import requests
from pydicom import Dataset

from worker.peers.configuration import WebPeer, read_secret
from worker.peers.trouble import PeerError, http_trouble, storage_trouble

#: Answers to one search are asked for in portions of so many.
PAGE = 500
#: No radiograph is larger.
MAX_OBJECT_BYTES = 1 << 30

_JSON = "application/dicom+json"
_CHUNK = 1 << 18
_LONGEST_HEAD = 1 << 16
_SOP_INSTANCE = "00081155"
_FAILED, _FAILURE, _STORED = "00081198", "00081197", "00081199"
_INDEFINITE_FAILURE = 0x0110

#: A study, series or instance as PS3.18 annex F has it: tag in eight hex digits → {"vr": …, "Value": […]}.
Attributes = Mapping[str, Any]

for _name in ("urllib3", "requests"):
    # They quote URLs, and in them UIDs and accession numbers; what matters is raised anyway.
    logging.getLogger(_name).setLevel(logging.CRITICAL)


def text_of(attributes: Attributes, tag: str) -> str:
    """The first value of an attribute as text; empty where it has none."""
    values = attributes.get(tag, {}).get("Value") or [""]
    return str(values[0] or "").strip(" \0")


class DicomWeb:
    """A connection to one service, for one thread.

    Every method raises :class:`worker.peers.trouble.PeerError`.
    """

    def __init__(self, peer: WebPeer) -> None:
        self._peer = peer
        self._session = requests.Session()
        # Proxies and passwords of the environment are for people's browsing.
        self._session.trust_env = False
        self._session.headers["User-Agent"] = "carina"
        certificates = peer.certificates
        for file in (certificates.ca_file, certificates.certificate_file, certificates.key_file):
            if file is not None and not file.is_file():
                raise PeerError("SECRET_MISSING")
        if certificates.ca_file is not None:
            self._session.verify = str(certificates.ca_file)
        if certificates.certificate_file is not None:
            self._session.cert = (str(certificates.certificate_file), str(certificates.key_file))
        if peer.token_file is not None:
            self._session.headers["Authorization"] = f"Bearer {read_secret(peer.token_file)}"
        elif peer.password_file is not None:
            self._session.auth = (peer.user, read_secret(peer.password_file))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._session.close()

    def search(self, *path: str, **matching: str) -> Iterator[Attributes]:
        """Search below ``path``, e.g. ``search("studies", StudyDate="20260101")`` (PS3.18 section 10.6)."""
        first: list[Attributes] = []
        offset = 0
        while True:
            parameters = {**matching, "limit": str(PAGE), "offset": str(offset)}
            with self._ask("GET", *path, params=parameters, headers={"Accept": _JSON}) as answer:
                found = [] if answer.status_code == 204 else _json(answer)
            if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
                raise PeerError("SERVER_ERROR", "its answer to a search is no list")
            # Who does not know "offset" says the same thing for ever.
            if offset and found == first:
                return
            yield from found
            # Who does not know "limit" has said everything.
            if len(found) != PAGE:
                return
            first = first or found
            offset += PAGE

    def retrieve(self, study: str, series: str, instance: str, out: IO[bytes]) -> int:
        """Write one object into ``out``, encoded as the archive keeps it; returns its size in bytes (section 10.4)."""
        path = ("studies", study, "series", series, "instances", instance)
        accept = 'multipart/related; type="application/dicom"; transfer-syntax=*'
        try:
            with self._ask("GET", *path, headers={"Accept": accept}, stream=True) as answer:
                return _write_object(answer, out)
        except PeerError as error:
            # The service was there when it was searched: only this object is not.
            raise PeerError("OBJECT_GONE", error.detail) if error.code == "WRONG_ADDRESS" else error from None

    def store(self, objects: Sequence[Dataset]) -> PeerError | None:
        """Store objects of one study (section 10.5); says what became of the first that was not stored."""
        boundary = uuid.uuid4().hex
        body = b"".join(
            b"--%b\r\nContent-Type: application/dicom\r\n\r\n%b\r\n" % (boundary.encode(), _encoded(each))
            for each in objects
        )
        with self._ask(
            "POST",
            "studies",
            data=body + b"--%b--\r\n" % boundary.encode(),
            headers={
                "Accept": _JSON,
                "Content-Type": f'multipart/related; type="application/dicom"; boundary={boundary}',
            },
            # 202: some were stored; 409: none was. Both say which and why.
            accepted=(200, 202, 409),
        ) as answer:
            if answer.status_code == 409 and not answer.content:
                return http_trouble(409)
            return _first_not_stored(_json(answer), objects)

    def check(self) -> str:
        """Ask for one study; returns what the service said, for a person."""
        with self._ask("GET", "studies", params={"limit": "1"}, headers={"Accept": _JSON}) as answer:
            if answer.status_code != 204:
                _json(answer)
            return f"HTTP status {answer.status_code}, {answer.elapsed.total_seconds():.2f} s"

    @contextmanager
    def _ask(
        self, method: str, *path: str, accepted: Sequence[int] = (200, 204), **request: Any
    ) -> Iterator[requests.Response]:
        url = "/".join((self._peer.url, *path))
        try:
            with self._session.request(
                method, url, timeout=self._peer.timeout_seconds, allow_redirects=False, **request
            ) as answer:
                if answer.status_code not in accepted:
                    raise http_trouble(answer.status_code)
                yield answer
        except requests.exceptions.SSLError:
            raise PeerError("TLS_FAILED") from None
        except (requests.exceptions.ConnectTimeout, requests.exceptions.ProxyError):
            raise PeerError("UNREACHABLE") from None
        except requests.exceptions.ReadTimeout:
            raise PeerError("NO_ANSWER", f"within {self._peer.timeout_seconds:g} s") from None
        except requests.exceptions.ConnectionError as error:
            raise PeerError(*_broken(error)) from None
        except requests.RequestException as error:
            raise PeerError("NO_ANSWER", type(error).__name__) from None


def _broken(error: requests.exceptions.ConnectionError) -> tuple[str, str]:
    """Whether a connection was never made, or was broken off."""
    from urllib3.exceptions import MaxRetryError, NewConnectionError

    cause = error.args[0] if error.args else None
    if isinstance(cause, MaxRetryError) and isinstance(cause.reason, NewConnectionError):
        return "UNREACHABLE", ""
    return "NO_ANSWER", "the connection was broken off"


def _json(answer: requests.Response) -> Any:
    try:
        return answer.json()
    except requests.exceptions.JSONDecodeError:
        raise PeerError("WRONG_ADDRESS", "its answer is not DICOM JSON") from None


def _encoded(each: Dataset) -> bytes:
    stream = BytesIO()
    each.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def _first_not_stored(answer: Any, objects: Sequence[Dataset]) -> PeerError | None:
    if not isinstance(answer, dict):
        raise PeerError("SERVER_ERROR", "its answer to a store is no object")
    failed = {
        text_of(item, _SOP_INSTANCE): int(text_of(item, _FAILURE) or _INDEFINITE_FAILURE)
        for item in answer.get(_FAILED, {}).get("Value", [])
    }
    stored = {text_of(item, _SOP_INSTANCE) for item in answer.get(_STORED, {}).get("Value", [])}
    for each in objects:
        uid = str(each.SOPInstanceUID)
        if uid in failed and (trouble := storage_trouble(failed[uid])):
            return trouble
        if uid not in failed and uid not in stored:
            return PeerError("SERVER_ERROR", "its answer does not name the object")
    return None


def _write_object(answer: requests.Response, out: IO[bytes]) -> int:
    """The first part of a multipart answer, or an answer that is the object itself."""
    kind = answer.headers.get("Content-Type", "")
    pieces: Iterator[bytes] = answer.iter_content(_CHUNK)
    if not kind.lower().startswith("multipart/"):
        return sum(out.write(piece) for piece in _bounded(pieces))
    head = b""
    for piece in pieces:
        head += piece
        if b"\r\n\r\n" in head or len(head) > _LONGEST_HEAD:
            break
    opening, _, start = head.lstrip().partition(b"\r\n\r\n")
    delimiter = b"\r\n" + opening.partition(b"\r\n")[0]
    if not delimiter.startswith(b"\r\n--"):
        raise PeerError("SERVER_ERROR", "its answer has no parts")
    size, tail = 0, start
    for piece in _bounded(pieces):
        tail += piece
        # What might be a delimiter's beginning is kept back.
        size += out.write(tail[: -len(delimiter) - 64])
        tail = tail[-len(delimiter) - 64 :]
    content, ended, _ = tail.rpartition(delimiter + b"--")
    if not ended:
        raise PeerError("NO_ANSWER", "the object ends too early")
    return size + out.write(content)


def _bounded(pieces: Iterator[bytes]) -> Iterator[bytes]:
    size = 0
    for piece in pieces:
        size += len(piece)
        if size > MAX_OBJECT_BYTES:
            raise PeerError("REFUSED", "the object is larger than a radiograph can be")
        yield piece
