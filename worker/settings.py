"""What a user may set, all of it, from the environment.

Every variable starts with ``CARINA_``. Each has a default that suits one machine. A secret
``CARINA_X`` may be given as a file name in ``CARINA_X_FILE``. Unknown names are refused
with the nearest known one, so that a misspelt setting is never silently ignored.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import secrets
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from worker.errors import CarinaError

_GIB = 1 << 30


def _setting(default: Any, meaning: str, *, secret: bool = False) -> Any:
    return field(default=default, metadata={"meaning": meaning, "secret": secret})


@dataclass(frozen=True)
class Settings:
    """All settings. Sizes in bytes, times in seconds."""

    home: Path = _setting(Path("~/.carina"), "Folder for the database, the site key and compiled engines.")
    database_url: str = _setting("", "SQLAlchemy URL; empty means SQLite in the home folder.", secret=True)
    broker_url: str = _setting(
        "", "Redis or Valkey URL; empty means no broker: workers only look into the database.", secret=True
    )
    bundle: str = _setting("", "Folder of the bundle to register first; empty means the packaged one.")
    roots: str = _setting(
        "local=/", "Named folders that films lie under, NAME=FOLDER separated by commas; the longest match wins."
    )
    backend: str = _setting("auto", "Engine backend: auto, tensorrt, torch or openvino.")
    precision: str = _setting("auto", "Engine precision to begin with: auto, int8, int8-fp32, fp16, bf16 or fp32.")
    engine_build: str = _setting("auto", "Engines: auto builds what the cache lacks, never refuses it.")
    claim_size: int = _setting(16, "Films claimed together.")
    engine_batch: int = _setting(1, "Films given to the engine together; 1 is best on a CPU.")
    decoders: int = _setting(0, "Decoder processes; 0 means one per core.")
    decode_memory: int = _setting(3 * _GIB, "Memory one decoder process may use.")
    decode_timeout: float = _setting(60.0, "Time one film may take to decode.")
    lease_seconds: float = _setting(120.0, "How long a silent worker keeps its films.")
    stall_seconds: float = _setting(300.0, "A worker without progress for so long stops.")
    poll_seconds: float = _setting(2.0, "How often an idle worker looks for films.")
    max_attempts: int = _setting(5, "Attempts at a film with transient trouble.")
    backoff_seconds: float = _setting(15.0, "First wait after transient trouble; doubles each time, capped at an hour.")
    backlog_high: int = _setting(200_000, "Registration pauses at so many ready films.")
    backlog_low: int = _setting(50_000, "Registration resumes at so many ready films.")
    disk_reserve: int = _setting(_GIB, "Work pauses when the home folder has less free space.")
    scan_chunk: int = _setting(1000, "Files registered in one transaction.")
    shadow: str = _setting(
        "auto", "Shadow jobs: auto does them when nothing else is ready, never leaves them to others."
    )
    shadow_agreement: float = _setting(
        0.0, "Agreement (0-1) with the bundle in service that a promotion asks for; 0 asks for no shadow jobs."
    )
    readers: str = _setting(
        "majority", "What several readers of a film say together where performance is tracked: majority, any or latest."
    )
    settle_seconds: float = _setting(5.0, "A watched file is taken when it has not changed for so long.")
    delivery: str = _setting("", "File (TOML) that names where results go to and where films are pulled from.")
    listen_address: str = _setting("127.0.0.1", "Address the listener takes connections at; 0.0.0.0 means all.")
    listen_port: int = _setting(11112, "TCP port of the listener.")
    listen_ae_title: str = _setting("CARINA", "AE title of the listener; calls for another one are refused.")
    listen_senders: str = _setting("", "Calling AE titles the listener admits, separated by commas; empty admits all.")
    listen_networks: str = _setting(
        "", "Addresses and networks the listener admits, such as 10.1.0.0/16, separated by commas; empty admits all."
    )
    listen_archive: str = _setting(
        "", "Calling AE titles whose films join the lane archive, separated by commas; all others join icu."
    )
    listen_processes: int = _setting(1, "Listener processes that share the port.")
    listen_connections: int = _setting(
        100, "Connections a listener process has at once; the longest silent gives way to a new one."
    )
    listen_timeout: float = _setting(60.0, "A sender that is silent for so long is disconnected.")
    listen_tls_certificate: str = _setting("", "The listener's certificate (PEM file); empty means no TLS.")
    listen_tls_key: str = _setting("", "Private key (PEM file) of that certificate.")
    listen_tls_ca: str = _setting("", "Certificates (PEM file) that senders' certificates must come from.")
    listen_keep_days: float = _setting(
        0.0, "Days the listener keeps a film's file, and longer until nothing needs it any more; 0 keeps it for ever."
    )
    listen_keep_labelled: str = _setting("yes", "Whether the listener keeps the files of labelled films: yes or no.")
    serve_address: str = _setting("127.0.0.1", "Address the page is served at.")
    serve_port: int = _setting(8011, "TCP port of the page; 0 means any that is free.")
    serve_token: str = _setting(
        "", "Who knows it sees the page: at least 16 characters; empty makes a new one at each start.", secret=True
    )
    serve_open: str = _setting("no", "Whether the page needs no token, on a loopback address only: yes or no.")
    serve_identifiers: str = _setting(
        "",
        "Identifiers the page shows besides keys, separated by commas: accession_number, sop_instance_uid; "
        "empty shows none.",
    )
    serve_pictures: str = _setting(
        "yes", "Whether the page shows the films themselves, which may bear burnt-in names: yes or no."
    )
    alert_wait_icu: float = _setting(1800.0, "Alert when a film of the lane icu has waited for so long; 0 never.")
    alert_wait_archive: float = _setting(
        172_800.0, "Alert when a film of the lane archive has waited for so long; 0 never."
    )
    alert_no_films: float = _setting(86_400.0, "Alert when no film has come for so long; 0 never.")
    alert_failures: float = _setting(0.05, "Alert when this share (0-1) of a day's films has failed; 0 never.")
    alert_disk: int = _setting(5 * _GIB, "Alert when the home folder has less free space; 0 never.")
    alert_auc_floor: float = _setting(
        0.0, "Alert when the whole interval of a finding's AUROC lies under it (0-1); 0 never."
    )
    webhook_url: str = _setting("", "URL that alerts are sent to (POST, JSON); empty sends none.", secret=True)
    webhook_secret: str = _setting("", "Key of the HMAC-SHA256 that signs what is sent there.", secret=True)
    webhook_seconds: float = _setting(300.0, "Alerts are sent no more often than once in so many seconds.")
    metrics_address: str = _setting("127.0.0.1", "Address of the worker's Prometheus endpoint.")
    metrics_port: int = _setting(0, "TCP port of the worker's Prometheus endpoint; 0 means none.")
    rules: str = _setting("", "TOML file that says which films are processed; empty means all: docs/pacs.md.")

    @property
    def url(self) -> str:
        """The database URL in force."""
        return self.database_url or f"sqlite:///{self.home / 'carina.sqlite'}"

    @property
    def decoder_count(self) -> int:
        """Decoder processes to run: as set, or one per usable core."""
        return self.decoders or len(os.sched_getaffinity(0))

    @property
    def root_folders(self) -> dict[str, Path]:
        """Root name → folder; ``spool`` is among them where the listener has one on this machine."""
        folders: dict[str, Path] = {}
        for item in self.roots.split(","):
            name, separator, folder = item.strip().partition("=")
            if not separator or not name or not folder.startswith("/"):
                raise CarinaError(
                    f"CARINA_ROOTS has the entry {item.strip()!r}; write NAME=/ABSOLUTE/FOLDER, separated by commas."
                )
            folders[name] = Path(folder)
        # Only where there is one: elsewhere its films are left to the machines that can read them.
        if (self.spool / "incoming").is_dir():
            folders.setdefault("spool", self.spool)
        return folders

    @property
    def spool(self) -> Path:
        """Where the listener keeps what it received: the root ``spool``."""
        return self.home / "spool"


def load_settings(environment: Mapping[str, str] | None = None) -> Settings:
    """Read the settings from ``environment`` (default: the process's).

    Raises
    ------
    CarinaError
        An unknown name, a value of the wrong type, or a ``_FILE`` that cannot be read.
    """
    environment = os.environ if environment is None else environment
    known = {f"CARINA_{item.name.upper()}": item for item in fields(Settings)}
    values: dict[str, Any] = {}
    for variable, raw in environment.items():
        if not variable.startswith("CARINA_") or variable.startswith("CARINA_TEST_"):
            continue
        name, text = variable, raw
        if variable not in known and variable.endswith("_FILE"):
            name = variable.removesuffix("_FILE")
            if name in known:
                text = _read_secret(variable, raw)
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean {near[0]}?" if near else " See docs/configuration.md."
            raise CarinaError(f"{variable} is not a setting of Carina.{hint}")
        values[known[name].name] = _convert(name, text, known[name].default)
    settings = Settings(**values)
    return replace(settings, home=settings.home.expanduser().absolute())


def _read_secret(variable: str, file: str) -> str:
    try:
        return Path(file).read_text("utf-8").strip()
    except OSError as error:
        raise CarinaError(f"{variable} names a file that cannot be read: {error.strerror}.") from None


def _convert(variable: str, text: str, default: Any) -> Any:
    try:
        if isinstance(default, int):
            return int(text)
        if isinstance(default, float):
            return float(text)
    except ValueError:
        raise CarinaError(f"{variable} must be a number, not {text!r}.") from None
    return Path(text) if isinstance(default, Path) else text


def site_key(settings: Settings) -> bytes:
    """The 32 bytes that key every pseudonym; made at the first start, mode 0600.

    Losing it means that films and patients cannot be recognised again.
    """
    path = settings.home / "site.key"
    if not path.exists():
        # The database in this folder names patients' files.
        settings.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        _make_site_key(path)
    return _read_site_key(path)


def _make_site_key(path: Path) -> None:
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix="site.key.")
    with os.fdopen(descriptor, "w") as stream:
        stream.write(secrets.token_hex(32) + "\n")
        stream.flush()
        os.fsync(stream.fileno())
    # A link appears whole or not at all, and never replaces a key another process just made.
    with contextlib.suppress(FileExistsError):
        os.link(temporary, path)
    Path(temporary).unlink()


def _read_site_key(path: Path) -> bytes:
    try:
        key = bytes.fromhex(path.read_text("ascii"))
    except (OSError, ValueError) as error:
        raise CarinaError(f"The site key {path} cannot be read: {error}. Restore it from your backup.") from None
    if len(key) != 32:
        raise CarinaError(f"The site key {path} is damaged: restore it from your backup.")
    return key
