"""Who may send to the listener, and which lane do their films join?"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from schema.tables import Lane
from worker.errors import CarinaError
from worker.settings import Settings

#: Characters of an AE title (PS3.5 table 6.2-1).
_LONGEST_AE_TITLE = 16

Network = IPv4Network | IPv6Network


@dataclass(frozen=True)
class Policy:
    """What the settings ``CARINA_LISTEN_*`` ask for, checked.

    ``senders`` and ``networks`` are empty where all are admitted; ``tls`` is None without TLS.
    """

    address: str
    port: int
    ae_title: str
    senders: frozenset[str]
    networks: tuple[Network, ...]
    archive: frozenset[str]
    connections: int
    timeout: float
    tls: ssl.SSLContext | None

    def admits_address(self, address: str) -> bool:
        """Whether a peer at ``address`` (IPv4 or IPv6, as text) may connect."""
        if not self.networks:
            return True
        peer = ip_address(address.partition("%")[0])
        if isinstance(peer, IPv6Address) and peer.ipv4_mapped is not None:
            peer = peer.ipv4_mapped
        return any(peer in network for network in self.networks)

    def lane(self, calling_ae_title: str) -> str:
        """The lane that films of this sender join."""
        return Lane.ARCHIVE.value if calling_ae_title in self.archive else Lane.ICU.value

    def lines(self, *, port: int | None = None) -> Iterator[str]:
        """What is listened on and who is admitted, for a person; ``port`` is the one that was free."""
        how = "mutual TLS" if self.tls else "no TLS: identities are readable on the way"
        yield f"Listening on {self.address} port {port or self.port} as {self.ae_title} ({how})."
        senders = ", ".join(sorted(self.senders)) or "any calling AE title"
        networks = ", ".join(map(str, self.networks)) or "any address"
        yield f"Admitted: {senders}; from {networks}."
        if self.archive:
            yield f"Lane archive: {', '.join(sorted(self.archive))}; all others icu."


def read_policy(settings: Settings) -> Policy:
    """The policy of these settings.

    Raises
    ------
    CarinaError
        A setting cannot be meant so, or a TLS file cannot be used.
    """
    if not 0 <= settings.listen_port <= 65_535:
        raise CarinaError("CARINA_LISTEN_PORT must be between 1 and 65535.")
    for name in ("listen_processes", "listen_connections"):
        if getattr(settings, name) < 1:
            raise CarinaError(f"CARINA_{name.upper()} must be 1 or more.")
    if settings.listen_connections > _MOST_CONNECTIONS:
        raise CarinaError(
            f"CARINA_LISTEN_CONNECTIONS must be at most {_MOST_CONNECTIONS}: use more processes (carina listen "
            "--processes)."
        )
    if settings.listen_timeout <= 0:
        raise CarinaError("CARINA_LISTEN_TIMEOUT must be above 0.")
    if settings.listen_keep_labelled not in ("yes", "no"):
        raise CarinaError("CARINA_LISTEN_KEEP_LABELLED must be yes or no.")
    if settings.listen_keep_days < 0:
        raise CarinaError("CARINA_LISTEN_KEEP_DAYS must not be negative.")
    (own,) = _ae_titles("CARINA_LISTEN_AE_TITLE", settings.listen_ae_title) or ("",)
    if not own:
        raise CarinaError("CARINA_LISTEN_AE_TITLE must not be empty.")
    return Policy(
        address=settings.listen_address,
        port=settings.listen_port,
        ae_title=own,
        senders=frozenset(_ae_titles("CARINA_LISTEN_SENDERS", settings.listen_senders)),
        networks=tuple(_networks(settings.listen_networks)),
        archive=frozenset(_ae_titles("CARINA_LISTEN_ARCHIVE", settings.listen_archive)),
        connections=settings.listen_connections,
        timeout=settings.listen_timeout,
        tls=_tls(settings),
    )


#: Each needs three threads and two file descriptors.
_MOST_CONNECTIONS = 400


def _items(text: str) -> Iterator[str]:
    return (item for part in text.split(",") if (item := part.strip()))


def _ae_titles(variable: str, text: str) -> list[str]:
    titles = list(_items(text))
    for title in titles:
        if len(title) > _LONGEST_AE_TITLE or not (title.isascii() and title.isprintable()) or "\\" in title:
            raise CarinaError(
                f"{variable} has the entry {title!r}; an AE title has at most {_LONGEST_AE_TITLE} plain characters."
            )
    return titles


def _networks(text: str) -> Iterator[Network]:
    for item in _items(text):
        try:
            yield ip_network(item)
        except ValueError:
            raise CarinaError(
                f"CARINA_LISTEN_NETWORKS has the entry {item!r}; write addresses or networks such as 10.1.0.0/16."
            ) from None


def _tls(settings: Settings) -> ssl.SSLContext | None:
    files = (settings.listen_tls_certificate, settings.listen_tls_key, settings.listen_tls_ca)
    if not any(files):
        return None
    if not all(files):
        raise CarinaError(
            "TLS needs all three of CARINA_LISTEN_TLS_CERTIFICATE, CARINA_LISTEN_TLS_KEY and CARINA_LISTEN_TLS_CA."
        )
    certificate, key, authorities = files
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        context.load_cert_chain(certificate, key)
        context.load_verify_locations(authorities)
    except (OSError, ssl.SSLError) as error:
        reason = error.strerror or type(error).__name__
        raise CarinaError(
            f"A TLS file of CARINA_LISTEN_TLS_* cannot be used: {reason}. Each must be a readable PEM file, and "
            "the key must belong to the certificate."
        ) from None
    return context
