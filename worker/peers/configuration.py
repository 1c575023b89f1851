"""Which destinations and sources does the hospital have? The file that ``CARINA_DELIVERY`` names.

::

    [destination.pacs]
    kind = "dicom"
    host = "pacs.hospital.example"
    port = 104
    ae_title = "PACS"
    outputs = ["segmentation", "report"]
    only_flagged = true

    [destination.research]
    kind = "dicomweb"
    url = "https://archive.hospital.example/dicom-web"
    token_file = "/run/secrets/archive_token"
    outputs = ["segmentation"]
    per_minute = 120

    [source.archive]
    url = "https://archive.hospital.example/dicom-web"

Everything is checked before anything is sent. Secrets stay in files of their own, read anew for each
connection; names of files are relative to the folder of this one.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from schema.findings import Finding
from schema.outputs import OutputKind
from schema.tables import DestinationKind, Lane
from worker.errors import CarinaError
from worker.peers.trouble import PeerError

DEFAULT_TIMEOUT_SECONDS = 30.0

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
#: PS3.5 section 6.2, VR AE: no backslash, no control character, not only spaces.
_AE_TITLE = re.compile(r"(?=.*[^ ])[\x20-\x5b\x5d-\x7e]{1,16}")


@dataclass(frozen=True)
class Certificates:
    """PEM files: whom we trust, and who we are where the other side asks. None: the system's list, nobody."""

    ca_file: Path | None = None
    certificate_file: Path | None = None
    key_file: Path | None = None


@dataclass(frozen=True)
class DicomPeer:
    """A node of the DICOM network; ``tls`` is None for a connection in plain text."""

    host: str
    port: int
    ae_title: str
    calling_ae_title: str = "CARINA"
    tls: Certificates | None = None
    timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS

    @property
    def address(self) -> str:
        """For a person."""
        return f"{self.ae_title} at {self.host}:{self.port}"


@dataclass(frozen=True)
class WebPeer:
    """A DICOMweb service: ``url`` is what ``/studies`` follows. A bearer token, or a user with a password."""

    url: str
    user: str = ""
    password_file: Path | None = None
    token_file: Path | None = None
    certificates: Certificates = Certificates()
    timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS

    @property
    def address(self) -> str:
        """For a person."""
        return self.url


@dataclass(frozen=True)
class Rules:
    """Which results a destination gets: those that meet all of them.

    ``only_positive`` names findings of which at least one is positive; ``lanes`` is empty for all lanes.
    """

    only_flagged: bool = False
    only_positive: tuple[str, ...] = ()
    lanes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Destination:
    """Where results go; ``per_minute`` outputs at most, None for no limit."""

    name: str
    peer: DicomPeer | WebPeer
    outputs: tuple[OutputKind, ...]
    rules: Rules = Rules()
    per_minute: int | None = None

    @property
    def kind(self) -> DestinationKind:
        """How it is spoken to."""
        return DestinationKind.DICOM if isinstance(self.peer, DicomPeer) else DestinationKind.DICOMWEB

    def to_json(self) -> dict[str, Any]:
        """What may stand in the database: no secrets, no names of files."""
        peer = self.peer
        if isinstance(peer, DicomPeer):
            about: dict[str, Any] = {
                "host": peer.host, "port": peer.port, "ae_title": peer.ae_title,
                "calling_ae_title": peer.calling_ae_title, "tls": peer.tls is not None,
            }  # fmt: skip
        else:
            login = "password" if peer.user else "token" if peer.token_file else "none"
            about = {"url": peer.url, "login": login}
        return {
            **about,
            "outputs": [str(output) for output in self.outputs],
            "only_flagged": self.rules.only_flagged,
            "only_positive": list(self.rules.only_positive),
            "lanes": list(self.rules.lanes),
            "per_minute": self.per_minute,
        }


@dataclass(frozen=True)
class Source:
    """Where films are fetched from."""

    name: str
    peer: WebPeer


@dataclass(frozen=True)
class Peers:
    """Everything the file names, in its order."""

    destinations: dict[str, Destination]
    sources: dict[str, Source]


def load_peers(file: str) -> Peers:
    """Read the file that ``CARINA_DELIVERY`` names.

    Raises
    ------
    CarinaError
        There is none, it is no TOML, or an entry is wrong: which key, and what it may be.
    """
    if not file:
        raise CarinaError(
            "No destinations are known: write them into a file and name it in CARINA_DELIVERY. See docs/operations.md."
        )
    path = Path(file).expanduser()
    try:
        content = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise CarinaError(f"CARINA_DELIVERY names a file that cannot be read: {error.strerror}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CarinaError(f"The file that CARINA_DELIVERY names is not TOML: {error}.") from None
    top = _Table(content, "the file that CARINA_DELIVERY names", path.parent)
    destinations = {name: _destination(name, table) for name, table in top.tables("destination")}
    sources = {name: _source(name, table) for name, table in top.tables("source")}
    top.end()
    return Peers(destinations, sources)


def _destination(name: str, table: _Table) -> Destination:
    kind = table.one_of("kind", [str(kind) for kind in DestinationKind])
    peer = _dicom_peer(table) if kind == DestinationKind.DICOM else _web_peer(table)
    outputs = table.list_of("outputs", [str(output) for output in OutputKind])
    if not outputs:
        raise table.wrong("outputs", f"a list of at least one of {', '.join(OutputKind)}")
    rules = Rules(
        only_flagged=table.take("only_flagged", bool, "true or false", False),
        # Bundles may know other findings than the paper's ten.
        only_positive=table.list_of("only_positive", None),
        lanes=table.list_of("lanes", [str(lane) for lane in Lane]),
    )
    for finding in set(rules.only_positive) - {str(known) for known in Finding}:
        if near := difflib.get_close_matches(finding, [str(known) for known in Finding], n=1, cutoff=0.8):
            raise table.wrong("only_positive", f"the name of a finding; did you mean {near[0]}")
    limit = table.take("per_minute", int, "a positive number", None)
    if limit is not None and limit < 1:
        raise table.wrong("per_minute", "a positive number")
    table.end()
    return Destination(name, peer, tuple(OutputKind(output) for output in outputs), rules, limit)


def _source(name: str, table: _Table) -> Source:
    source = Source(name, _web_peer(table))
    table.end()
    return source


def _dicom_peer(table: _Table) -> DicomPeer:
    port = table.take("port", int, "a port number")
    if not 0 < port < 65536:
        raise table.wrong("port", "a port number")
    titles = [
        table.take(key, str, "an AE title", default)
        for key, default in (("ae_title", ...), ("calling_ae_title", "CARINA"))
    ]
    for key, title in zip(("ae_title", "calling_ae_title"), titles, strict=True):
        if not _AE_TITLE.fullmatch(title):
            raise table.wrong(key, "an AE title: 1 to 16 plain characters, no backslash")
    host = table.take("host", str, "a host name or address")
    certificates = _certificates(table)
    encrypted = table.take("tls", bool, "true or false", certificates != Certificates())
    return DicomPeer(host, port, titles[0], titles[1], certificates if encrypted else None, _timeout(table))


def _web_peer(table: _Table) -> WebPeer:
    url = table.take("url", str, "a URL").rstrip("/")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query:
        raise table.wrong("url", "the http(s) URL that /studies follows")
    if parts.username or parts.password:
        raise table.wrong("url", "free of user and password: use the keys user and password_file")
    user = table.take("user", str, "a user name", "")
    password, token = table.file("password_file"), table.file("token_file")
    if (password is None) != (not user) or (user and token):
        raise table.wrong("user", "given together with password_file, and without token_file")
    return WebPeer(url, user, password, token, _certificates(table), _timeout(table))


def _certificates(table: _Table) -> Certificates:
    found = Certificates(*(table.file(key) for key in ("ca_file", "certificate_file", "key_file")))
    if (found.certificate_file is None) != (found.key_file is None):
        raise table.wrong("certificate_file", "given together with key_file")
    return found


def _timeout(table: _Table) -> float:
    seconds = float(table.take("timeout_seconds", (int, float), "a number of seconds", DEFAULT_TIMEOUT_SECONDS))
    if not 0 < seconds <= 600:
        raise table.wrong("timeout_seconds", "between 0 and 600")
    return seconds


class _Table:
    """A table of the file whose keys are taken one by one; what is left at the end is a mistake."""

    def __init__(self, content: Mapping[str, Any], title: str, folder: Path) -> None:
        self._left = dict(content)
        self._title = title
        self._folder = folder
        self._known: list[str] = []

    def wrong(self, key: str, wanted: str) -> CarinaError:
        return CarinaError(f"{key} in {self._title} must be {wanted}. See docs/operations.md.")

    def take(self, key: str, kind: Any, wanted: str, default: Any = ...) -> Any:
        self._known.append(key)
        if key not in self._left and default is not ...:
            return default
        value = self._left.pop(key, None)
        kinds = kind if isinstance(kind, tuple) else (kind,)
        # A bool is an int for Python, not for a person.
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise self.wrong(key, wanted)
        return value

    def one_of(self, key: str, choices: list[str]) -> str:
        value: str = self.take(key, str, f"one of {', '.join(choices)}")
        if value not in choices:
            raise self.wrong(key, f"one of {', '.join(choices)}")
        return value

    def list_of(self, key: str, choices: list[str] | None) -> tuple[str, ...]:
        wanted = f"a list of {', '.join(choices)}" if choices else "a list of names"
        values = self.take(key, list, wanted, [])
        if any(not isinstance(value, str) or (choices and value not in choices) for value in values):
            raise self.wrong(key, wanted)
        return tuple(dict.fromkeys(values))

    def file(self, key: str) -> Path | None:
        name = self.take(key, str, "the name of a file", None)
        return None if name is None else self._folder / Path(name).expanduser()

    def tables(self, key: str) -> list[tuple[str, _Table]]:
        found = self.take(key, dict, "tables", {})
        for name, content in found.items():
            if not _NAME.fullmatch(name) or not isinstance(content, dict):
                raise self.wrong(key, f"written as [{key}.NAME], the name of letters, digits, dot, dash and underscore")
        return [(name, _Table(content, f"[{key}.{name}]", self._folder)) for name, content in found.items()]

    def end(self) -> None:
        for key in self._left:
            near = difflib.get_close_matches(key, self._known, n=1)
            hint = f" Did you mean {near[0]}?" if near else f" Known are {', '.join(self._known)}."
            raise CarinaError(f"{key} in {self._title} is not known.{hint}")


def read_secret(file: Path) -> str:
    """The text of a secret's file.

    Raises
    ------
    worker.peers.trouble.PeerError
        ``SECRET_MISSING``.
    """
    try:
        return file.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError):
        raise PeerError("SECRET_MISSING") from None
