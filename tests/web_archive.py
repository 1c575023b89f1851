"""A DICOMweb archive in this process, with the faults a test wants."""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

from pydicom import Dataset, dcmread

_STUDY_TAGS = ("StudyInstanceUID", "StudyDate", "AccessionNumber")
_SERIES_TAGS = ("SeriesInstanceUID", "Modality")
_INSTANCE_TAGS = ("SOPInstanceUID", "SOPClassUID")


@dataclass
class Answer:
    """What to answer instead of the truth."""

    status: int = 200
    body: bytes = b""
    content_type: str = "application/dicom+json"


@dataclass
class WebArchive:
    """Films under ``url``. ``fault`` is asked first, with method and path; ``stored`` is what STOW brought.

    ``limit`` and ``offset`` say whether a search heeds them; ``matching`` whether it heeds its keys.
    ``refused`` is SOP Instance UID → failure reason of STOW.
    """

    films: list[bytes] = field(default_factory=list)
    fault: Callable[[str, str], Answer | None] = lambda method, path: None
    heeds_paging: bool = True
    heeds_matching: bool = True
    refused: dict[str, int] = field(default_factory=dict)
    stored: list[Dataset] = field(default_factory=list)
    asked: Counter[str] = field(default_factory=Counter)
    headers: list[dict[str, str]] = field(default_factory=list)

    def __enter__(self) -> Self:
        archive = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                archive._serve(self, "GET", b"")

            def do_POST(self) -> None:
                archive._serve(self, "POST", self.rfile.read(int(self.headers["Content-Length"])))

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/dicom-web"

    def _serve(self, request: Any, method: str, body: bytes) -> None:
        parts = urlsplit(request.path)
        path = parts.path.removeprefix("/dicom-web/")
        self.headers.append(dict(request.headers))
        answer = self.fault(method, path)
        if answer is None:
            answer = self._store(body) if method == "POST" else self._get(path, parse_qs(parts.query))
        self.asked[f"{method} {len(path.split('/'))}"] += 1
        request.send_response(answer.status)
        request.send_header("Content-Type", answer.content_type)
        request.send_header("Content-Length", str(len(answer.body)))
        request.end_headers()
        request.wfile.write(answer.body)

    def _get(self, path: str, query: dict[str, list[str]]) -> Answer:
        words = path.split("/")
        uids = words[1::2]
        films = [(content, dcmread(BytesIO(content), stop_before_pixels=True)) for content in self.films]
        keys = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
        for key, uid in zip(keys, uids, strict=False):
            films = [(content, film) for content, film in films if film[key].value == uid]
        if len(uids) == 3:
            return multipart([films[0][0]]) if films else Answer(404)
        tags = (_STUDY_TAGS, _SERIES_TAGS, _INSTANCE_TAGS)[len(uids)]
        if self.heeds_matching:
            for key in ("StudyDate", "AccessionNumber"):
                films = [(c, film) for c, film in films if key not in query or film.get(key) == query[key][0]]
        found = {film[tags[0]].value: film for _, film in films}
        rows = [
            {f"{film[tag].tag:08X}": {"vr": film[tag].VR, "Value": [str(film[tag].value)]} for tag in tags}
            for film in found.values()
        ]
        if self.heeds_paging and "limit" in query:
            start = int(query.get("offset", ["0"])[0])
            rows = rows[start : start + int(query["limit"][0])]
        return Answer(body=json.dumps(rows).encode())

    def _store(self, body: bytes) -> Answer:
        boundary = body.partition(b"\r\n")[0]
        parts = [part.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n") for part in body.split(boundary)[1:-1]]
        datasets = [dcmread(BytesIO(part)) for part in parts]
        kept = [each for each in datasets if str(each.SOPInstanceUID) not in self.refused]
        self.stored += kept
        failed = [
            {**_reference(each), "00081197": {"vr": "US", "Value": [self.refused[str(each.SOPInstanceUID)]]}}
            for each in datasets
            if str(each.SOPInstanceUID) in self.refused
        ]
        answer = {
            "00081199": {"vr": "SQ", "Value": [_reference(each) for each in kept]},
            "00081198": {"vr": "SQ", "Value": failed},
        }
        return Answer(200 if not failed else 202 if kept else 409, json.dumps(answer).encode())


def multipart(contents: list[bytes], boundary: str = "b0und") -> Answer:
    """A multipart/related answer."""
    parts = [b"--%b\r\nContent-Type: application/dicom\r\n\r\n%b\r\n" % (boundary.encode(), each) for each in contents]
    kind = f'multipart/related; type="application/dicom"; boundary={boundary}'
    return Answer(body=b"".join(parts) + f"--{boundary}--\r\n".encode(), content_type=kind)


def _reference(dataset: Dataset) -> dict[str, Any]:
    return {
        "00081150": {"vr": "UI", "Value": [str(dataset.SOPClassUID)]},
        "00081155": {"vr": "UI", "Value": [str(dataset.SOPInstanceUID)]},
    }


def is_retrieval(path: str) -> bool:
    """Whether a path asks for one object."""
    return re.fullmatch(r"studies/[^/]+/series/[^/]+/instances/[^/]+", path) is not None
