from __future__ import annotations

from pathlib import Path

import pytest

from worker.errors import CarinaError
from worker.intake.listener.policy import Policy, read_policy
from worker.settings import Settings


def policy(**changes: object) -> Policy:
    return read_policy(Settings(**{f"listen_{name}": value for name, value in changes.items()}))  # type: ignore[arg-type]


def test_defaults_admit_this_machine_only() -> None:
    found = policy()
    assert (found.address, found.port, found.ae_title, found.tls) == ("127.0.0.1", 11112, "CARINA", None)
    assert found.admits_address("10.1.2.3")
    assert found.lane("ANYBODY") == "icu"


@pytest.mark.parametrize(
    ("address", "admitted"),
    [
        ("10.1.200.3", True),
        ("10.2.0.1", False),
        ("192.168.7.9", True),
        ("192.168.7.10", False),
        ("::ffff:10.1.0.1", True),
        ("fd00::17", True),
        ("fe80::1%eth0", False),
    ],
)
def test_networks(address: str, admitted: bool) -> None:
    assert policy(networks="10.1.0.0/16, 192.168.7.9,fd00::/64").admits_address(address) is admitted


def test_lanes_and_senders_by_ae_title() -> None:
    found = policy(senders="ROOM1, ROOM2 ,ARCHIVE", archive="ARCHIVE")
    assert found.senders == {"ROOM1", "ROOM2", "ARCHIVE"}
    assert (found.lane("ARCHIVE"), found.lane("ROOM1")) == ("archive", "icu")
    said = "\n".join(found.lines(port=104))
    assert "port 104 as CARINA" in said
    assert "ARCHIVE, ROOM1, ROOM2" in said
    assert "from any address" in said


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"port": 70_000}, "CARINA_LISTEN_PORT"),
        ({"processes": 0}, "CARINA_LISTEN_PROCESSES"),
        ({"connections": 100_000}, "--processes"),
        ({"timeout": 0.0}, "CARINA_LISTEN_TIMEOUT"),
        ({"keep_days": -1.0}, "CARINA_LISTEN_KEEP_DAYS"),
        ({"keep_labelled": "perhaps"}, "yes or no"),
        ({"ae_title": ""}, "CARINA_LISTEN_AE_TITLE"),
        ({"ae_title": "A" * 17}, "16"),
        ({"senders": "RÖNTGEN"}, "CARINA_LISTEN_SENDERS"),
        ({"networks": "10.1.0.0/33"}, "CARINA_LISTEN_NETWORKS"),
        ({"tls_certificate": "a.pem"}, "all three"),
    ],
)
def test_what_cannot_be_meant_is_refused(changes: dict[str, object], said: str) -> None:
    with pytest.raises(CarinaError, match=said):
        policy(**changes)


def test_tls_files_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "empty.pem").touch()
    for name in ("absent.pem", "empty.pem"):
        file = str(tmp_path / name)
        with pytest.raises(CarinaError, match="CARINA_LISTEN_TLS_") as raised:
            policy(tls_certificate=file, tls_key=file, tls_ca=file)
        assert str(tmp_path) not in str(raised.value)
