from __future__ import annotations

import json
from pathlib import Path

import pytest

from schema.outputs import OutputKind
from schema.tables import DestinationKind
from worker.errors import CarinaError
from worker.peers.configuration import (
    Certificates,
    Destination,
    DicomPeer,
    Peers,
    Rules,
    Source,
    WebPeer,
    load_peers,
    read_secret,
)
from worker.peers.trouble import PeerError

FULL = """
[destination.pacs]
kind = "dicom"
host = "pacs.example"
port = 104
ae_title = "PACS"
calling_ae_title = "CARINA 1"
tls = true
outputs = ["report", "segmentation", "report"]
only_flagged = true
only_positive = ["pneumonia"]
lanes = ["icu"]
per_minute = 60
timeout_seconds = 5

[destination.web]
kind = "dicomweb"
url = "https://archive.example/dicom-web/"
token_file = "secrets/token"
ca_file = "/etc/ca.pem"
certificate_file = "us.pem"
key_file = "us.key"
outputs = ["overlay"]

[source.archive]
url = "http://archive.example/dicom-web"
user = "carina"
password_file = "/run/password"
"""
DICOM = {"kind": '"dicom"', "host": '"h"', "port": "104", "ae_title": '"A"', "outputs": '["report"]'}
WEB = {"kind": '"dicomweb"', "url": '"http://h/d"', "outputs": '["report"]'}


def write(folder: Path, text: str) -> str:
    (folder / "peers.toml").write_text(text)
    return str(folder / "peers.toml")


def load(folder: Path, lines: dict[str, str], **changes: str) -> Peers:
    text = "\n".join(f"{key} = {value}" for key, value in {**lines, **changes}.items() if value)
    return load_peers(write(folder, f"[destination.x]\n{text}\n"))


def test_everything_that_can_be_said(tmp_path: Path) -> None:
    peers = load_peers(write(tmp_path, FULL))
    assert peers.destinations["pacs"] == Destination(
        "pacs",
        DicomPeer("pacs.example", 104, "PACS", "CARINA 1", Certificates(), 5.0),
        (OutputKind.REPORT, OutputKind.SEGMENTATION),
        Rules(True, ("pneumonia",), ("icu",)),
        60,
    )
    certificates = Certificates(Path("/etc/ca.pem"), tmp_path / "us.pem", tmp_path / "us.key")
    web = WebPeer("https://archive.example/dicom-web", "", None, tmp_path / "secrets/token", certificates)
    assert peers.destinations["web"] == Destination("web", web, (OutputKind.OVERLAY,))
    assert [one.kind for one in peers.destinations.values()] == [DestinationKind.DICOM, DestinationKind.DICOMWEB]
    source = WebPeer("http://archive.example/dicom-web", "carina", Path("/run/password"))
    assert peers.sources == {"archive": Source("archive", source)}


def test_what_stands_in_the_database_names_no_file(tmp_path: Path) -> None:
    told = json.dumps([one.to_json() for one in load_peers(write(tmp_path, FULL)).destinations.values()])
    assert "archive.example" in told and "pacs.example" in told and "token" in told
    for file in ("secrets/token", "ca.pem", "us.key", str(tmp_path)):
        assert file not in told


@pytest.mark.parametrize(
    ("lines", "changes", "said"),
    [
        (DICOM, {"kind": '"fax"'}, "kind in [destination.x] must be one of dicom, dicomweb"),
        (DICOM, {"kind": ""}, "kind in [destination.x]"),
        (DICOM, {"prot": "104"}, "Did you mean port?"),
        (DICOM, {"colour": "1"}, "colour in [destination.x] is not known"),
        (DICOM, {"port": '"104"'}, "port in [destination.x] must be a port number"),
        (DICOM, {"port": "true"}, "must be a port number"),
        (DICOM, {"port": "0"}, "must be a port number"),
        (DICOM, {"ae_title": '"SEVENTEEN LETTERS"'}, "must be an AE title"),
        (DICOM, {"ae_title": '"  "'}, "must be an AE title"),
        (DICOM, {"calling_ae_title": "'A\\B'"}, "must be an AE title"),
        (DICOM, {"outputs": "[]"}, "at least one of segmentation, report, overlay, heatmap"),
        (DICOM, {"outputs": '["fax"]'}, "must be a list of segmentation"),
        (DICOM, {"only_positive": '["pneumona"]'}, "did you mean pneumonia"),
        (DICOM, {"lanes": '["night"]'}, "must be a list of icu, archive"),
        (DICOM, {"per_minute": "0"}, "must be a positive number"),
        (DICOM, {"timeout_seconds": "0"}, "between 0 and 600"),
        (DICOM, {"certificate_file": '"a.pem"'}, "given together with key_file"),
        (WEB, {"url": '"ftp://h"'}, "must be the http(s) URL"),
        (WEB, {"url": '"http://me:secret@h/d"'}, "use the keys user and password_file"),
        (WEB, {"user": '"me"'}, "given together with password_file"),
        (WEB, {"host": '"h"'}, "host in [destination.x] is not known"),
    ],
)
def test_a_mistake_is_told_with_its_key(
    tmp_path: Path, lines: dict[str, str], changes: dict[str, str], said: str
) -> None:
    with pytest.raises(CarinaError) as refused:
        load(tmp_path, lines, **changes)
    assert said in str(refused.value)


def test_findings_of_other_bundles_may_be_named(tmp_path: Path) -> None:
    rules = load(tmp_path, DICOM, only_positive='["fracture_of_rib"]').destinations["x"].rules
    assert rules.only_positive == ("fracture_of_rib",)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[destination]\nx = 1\n", "written as [destination.NAME]"),
        ('[destination."a b"]\n', "written as [destination.NAME]"),
        ("[destinations.x]\n", "Did you mean destination?"),
        ("[destination.x\n", "is not TOML"),
        ("[source.x]\n", "url in [source.x]"),
    ],
)
def test_a_file_of_another_form_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(CarinaError) as refused:
        load_peers(write(tmp_path, text))
    assert said in str(refused.value)


def test_no_file_or_none_that_can_be_read(tmp_path: Path) -> None:
    with pytest.raises(CarinaError, match="name it in CARINA_DELIVERY"):
        load_peers("")
    with pytest.raises(CarinaError, match="cannot be read: No such file") as refused:
        load_peers(str(tmp_path / "absent.toml"))
    assert "absent" not in str(refused.value)


def test_secrets_are_read_when_they_are_needed(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(" abc\n")
    assert read_secret(tmp_path / "token") == "abc"
    with pytest.raises(PeerError) as missing:
        read_secret(tmp_path / "absent")
    assert missing.value.code == "SECRET_MISSING"
