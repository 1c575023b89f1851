from __future__ import annotations

import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from worker.cli import main


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CARINA_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_a_setting_that_cannot_be_meant_ends_it_with_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pynetdicom")
    monkeypatch.setenv("CARINA_LISTEN_NETWORKS", "nowhere")
    found = CliRunner().invoke(main, ["listen"])
    assert (found.exit_code, "CARINA_LISTEN_NETWORKS" in found.output) == (1, True)


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("worker.intake.listener.")]:
        package, _, module = name.rpartition(".")
        # A package remembers its modules too: what is imported here must not stay with it for later tests.
        monkeypatch.delattr(sys.modules[package], module)
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pynetdicom", None)
    found = CliRunner().invoke(main, ["listen"])
    assert (found.exit_code, "pip install 'carina-cxr[pacs]'" in found.output) == (1, True)
