"""``carina engine``: build, list, verify."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from tiny_bundle import make_bundle

from worker.cli import COMMANDS, main
from worker.inference.bundles import load_bundle
from worker.inference.engines.openvino import OpenVinoBackend


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CARINA_HOME", str(tmp_path / "home"))
    monkeypatch.setitem(COMMANDS, "engine", "worker.cli.engine:engine")
    return tmp_path / "home"


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "tiny")


def carina(*arguments: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def told(*arguments: str | Path) -> Any:
    code, output = carina(*arguments, "--json")
    assert code == 0, output
    return json.loads(output)


def test_build_makes_what_a_worker_takes(tiny: Path, home: Path) -> None:
    code, output = carina("engine", "build", "--bundle", tiny, "--precision", "fp32")
    assert code == 0
    assert "tiny:1 on " in output and "regions-0: fp32 built, parity passed on 2 films" in output
    assert "regions-0: fp32, findings-0: fp32, findings-1: fp32" in output
    bundle = load_bundle(tiny, home=home, precision="fp32", build="never")
    assert len(bundle.engines) == 3
    facts = told("engine", "build", "--bundle", tiny, "--precision", "fp32")
    assert facts["bundle"] == "tiny:1" and facts["engine"] == bundle.engine_description
    assert all("from the cache" in note for note in facts["notes"][:3])
    assert facts["parity"]["regions-0"]["passed"] is True


def test_build_takes_the_champion_or_a_name(home: Path) -> None:
    facts = told("engine", "build", "--precision", "fp32")
    assert facts["bundle"] == "phantom:2"
    assert told("engine", "build", "--bundle", "phantom:2", "--precision", "fp32")["sha256"] == facts["sha256"]
    code, output = carina("engine", "build", "--bundle", "nobody:7")
    assert code == 1 and "There is no bundle 'nobody:7'" in output


@pytest.mark.parametrize(("option", "words"), [("--backend", "'tea'"), ("--precision", "'tea'")])
def test_unknown_options_are_one_sentence(tiny: Path, option: str, words: str) -> None:
    code, output = carina("engine", "build", "--bundle", tiny, option, "tea")
    assert code == 1 and words in output and "choose auto" in output and "Traceback" not in output


def test_list_tells_what_is_there(tiny: Path) -> None:
    assert carina("engine", "list") == (
        0,
        "No engine is built yet: the first start of a worker does it, or carina engine build.\n",
    )
    carina("engine", "build", "--bundle", tiny, "--precision", "fp32")
    listed = told("engine", "list")
    assert [each["member"] for each in listed] == ["findings-0", "findings-1", "regions-0"]
    assert {each["bundle"] for each in listed} == {"tiny:1"} and all(each["passed"] for each in listed)
    assert all(each["bytes"] > 0 and each["damage"] == "" for each in listed)
    code, output = carina("engine", "list")
    assert code == 0 and output.count("passed") == 3


def test_verify_finds_damage_and_loads_nothing(tiny: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    carina("engine", "build", "--bundle", tiny, "--precision", "fp32")

    def must_not_load(*arguments: object, **options: object) -> None:
        raise AssertionError("an engine was loaded")

    monkeypatch.setattr(OpenVinoBackend, "load", must_not_load)
    assert all(each["usable_here"] for each in told("engine", "verify"))
    file = next(home.rglob("findings-1/*.engine"))
    file.write_bytes(file.read_bytes()[:-1])
    code, output = carina("engine", "verify")
    assert code == 1 and "1 of 3 engines are damaged" in output and output.count("passed") == 2


def test_verify_says_what_is_for_another_machine(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    carina("engine", "build", "--bundle", tiny, "--precision", "fp32")
    original = OpenVinoBackend.__init__

    def elsewhere(self: OpenVinoBackend) -> None:
        original(self)
        self.device, self.version = "Another CPU", "1"

    monkeypatch.setattr(OpenVinoBackend, "__init__", elsewhere)
    for each in told("engine", "verify"):
        assert not each["usable_here"] and each["why"] == "for another backend version and device than this machine's"


def test_an_empty_cache_is_whole() -> None:
    assert carina("engine", "verify") == (0, "No engine is built yet: carina engine build\n")
    assert told("engine", "verify") == [] == told("engine", "list")
