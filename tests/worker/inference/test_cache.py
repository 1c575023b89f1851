import errno
import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from pathlib import Path

import pytest

from worker.inference import cache
from worker.inference.cache import (
    SIDECAR_NAME,
    EngineKey,
    UnusableEngineError,
    building,
    read_engine,
    stored_engines,
    write_engine,
)

ROOT = Path(__file__).resolve().parents[3]
KEY = EngineKey(
    bundle_sha256="ab" * 32,
    member="regions",
    network_sha256="cd" * 32,
    backend="openvino",
    backend_version="2026.4.1-22982-e213a147257-releases/2026/4",
    device="Intel(R) Xeon(R) Gold 6338 CPU @ 2.00GHz",
    capabilities=("BF16", "FP32"),
    precision="bf16",
    gate={"dice": 0.99},
)
PASSED = {"passed": True, "sentences": [], "films": 2, "figures": []}
REFUSED = {"passed": False, "sentences": ["Dice of carina is 0.5"], "films": 2, "figures": []}


def write(home, key=KEY, parity=PASSED, compiled=b"engine"):
    write_engine(home, key, bundle="tiny:1", spec={"inputs": [], "outputs": []}, parity=parity, compiled=compiled)


def test_place_tells_what_it_is(tmp_path):
    write(tmp_path)
    (sidecar,) = tmp_path.rglob(SIDECAR_NAME)
    assert sidecar.relative_to(tmp_path).as_posix() == (
        "engines/abababababab/openvino-2026.4.1-22982-e213a147257-releases-2026-4-"
        "intel-r-xeon-r-gold-6338-cpu-2.00ghz-bf16/regions/engine.json"
    )
    content = json.loads(sidecar.read_text("utf-8"))
    assert content["key"]["network_sha256"] == KEY.network_sha256 and content["bundle"] == "tiny:1"
    assert content["parity"] == PASSED and content["built_at"].endswith("+00:00")
    assert len(list(sidecar.parent.iterdir())) == 2


def test_what_was_written_is_read(tmp_path):
    assert read_engine(tmp_path, KEY) is None
    write(tmp_path)
    record = read_engine(tmp_path, KEY)
    assert record is not None and record.passed and record.compiled == b"engine"
    write(tmp_path, parity=REFUSED, compiled=None)
    record = read_engine(tmp_path, KEY)
    assert record is not None and not record.passed and record.compiled is None
    assert record.parity["sentences"] == REFUSED["sentences"]


@pytest.mark.parametrize("name", [item.name for item in fields(EngineKey)])
def test_any_difference_in_the_key_is_refused_and_named(tmp_path, name):
    other = {"capabilities": ("FP32",), "gate": {"dice": 0.5}}.get(name, f"{getattr(KEY, name)}x")
    write(tmp_path)
    changed = replace(KEY, **{name: other})
    place = changed.directory(tmp_path)
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        KEY.directory(tmp_path).rename(place)
    with pytest.raises(UnusableEngineError, match=f"has another {name}"):
        read_engine(tmp_path, changed)


DAMAGES = {
    "is damaged": lambda place: (place / SIDECAR_NAME).write_text("{", "utf-8"),
    "is not one of this version": lambda place: (place / SIDECAR_NAME).write_text("[]", "utf-8"),
    "json is damaged": lambda place: (place / SIDECAR_NAME).write_bytes(b"\xff\xfe"),
    "not one of this": lambda place: (place / SIDECAR_NAME).write_text('{"format": 2}', "utf-8"),
    "of this version": lambda place: (place / SIDECAR_NAME).write_text('{"format": 1}', "utf-8"),
    "SHA-256 differs": lambda place: next(place.glob("*.engine")).write_bytes(b"enginf"),
    "is not the one": lambda place: next(place.glob("*.engine")).write_bytes(b""),
    "is missing": lambda place: next(place.glob("*.engine")).unlink(),
}


@pytest.mark.parametrize("words", DAMAGES)
def test_damage_is_refused_listed_and_repaired_by_writing_again(tmp_path, words):
    write(tmp_path)
    DAMAGES[words](KEY.directory(tmp_path))
    with pytest.raises(UnusableEngineError, match=words):
        read_engine(tmp_path, KEY)
    (stored,) = stored_engines(tmp_path)
    assert words in stored.damage and stored.folder == KEY.directory(tmp_path)
    write(tmp_path)
    record = read_engine(tmp_path, KEY)
    assert record is not None and record.compiled == b"engine"
    (stored,) = stored_engines(tmp_path)
    assert stored.damage == ""


def test_an_engine_without_its_sidecar_is_half_written_and_counts_as_absent(tmp_path):
    write(tmp_path)
    (KEY.directory(tmp_path) / SIDECAR_NAME).unlink()
    assert read_engine(tmp_path, KEY) is None
    assert list(stored_engines(tmp_path)) == []


def test_the_sidecar_appears_last(tmp_path, monkeypatch):
    written = []
    original = cache._write_atomically
    monkeypatch.setattr(
        cache, "_write_atomically", lambda path, content: (written.append(path.name), original(path, content))
    )
    write(tmp_path)
    assert written[-1] == SIDECAR_NAME and len(written) == 2


def test_what_is_stored_is_listed(tmp_path):
    assert list(stored_engines(tmp_path)) == []
    write(tmp_path)
    write(tmp_path, replace(KEY, precision="int8"), REFUSED, None)
    first, second = stored_engines(tmp_path)
    assert (first.bundle, first.key["precision"], first.passed, first.size) == ("tiny:1", "bf16", True, 6)
    assert (second.key["precision"], second.passed, second.size) == ("int8", False, 0)
    told = json.loads(json.dumps(second.to_json()))
    assert told["sentences"] == REFUSED["sentences"] and told["member"] == "regions" and told["damage"] == ""


def test_writers_at_once_leave_one_whole_engine(tmp_path):
    contents = [bytes([index]) * 10_000 for index in range(4)]
    with ThreadPoolExecutor(8) as threads:
        jobs = [threads.submit(write, tmp_path, compiled=contents[index % 4]) for index in range(40)]
        records = [threads.submit(read_engine, tmp_path, KEY) for _ in range(40)]
    for job in jobs:
        job.result()
    for found in [record.result() for record in records] + [read_engine(tmp_path, KEY)]:
        assert found is None or found.compiled in contents
    assert read_engine(tmp_path, KEY) is not None
    assert not list(KEY.directory(tmp_path).glob(".*"))


BUILDER = """
import json, sys
from pathlib import Path
from worker.inference.cache import EngineKey, building
with building(Path(sys.argv[1]), EngineKey(**json.loads(sys.argv[2]))):
    print("building", flush=True)
    sys.stdin.read()
"""


def test_builders_take_turns_and_a_dead_one_lets_go(tmp_path, monkeypatch):
    other = subprocess.Popen(
        [sys.executable, "-c", BUILDER, str(tmp_path), json.dumps(KEY.to_json())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert other.stdout is not None and other.stdout.readline() == "building\n"
    events = []
    waiting = threading.Event()
    monkeypatch.setattr(cache.log, "info", lambda *words: waiting.set())

    def build():
        with building(tmp_path, KEY):
            events.append("built")

    with ThreadPoolExecutor(1) as threads:
        job = threads.submit(build)
        assert waiting.wait(60)
        with building(tmp_path, replace(KEY, precision="fp32")):
            events.append("built another engine meanwhile")
        other.kill()
        job.result(timeout=60)
    other.wait()
    assert events == ["built another engine meanwhile", "built"]


def test_a_cache_that_cannot_be_written_is_read_all_the_same(tmp_path, monkeypatch):
    write(tmp_path)

    def read_only(*arguments, **options):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "mkdir", read_only)
    monkeypatch.setattr(Path, "write_bytes", read_only)
    monkeypatch.setattr(os, "open", read_only)
    with building(tmp_path, KEY):
        record = read_engine(tmp_path, KEY)
    assert record is not None and record.compiled == b"engine"
    with pytest.raises(OSError, match="Read-only"):
        write(tmp_path)
