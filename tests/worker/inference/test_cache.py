import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace

import pytest

from worker.inference.cache import SIDECAR_NAME, EngineKey, read_engine, write_engine

KEY = EngineKey(
    bundle_sha256="ab" * 32,
    member="regions",
    onnx_sha256="cd" * 32,
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
    write_engine(home, key, spec={"inputs": [], "outputs": []}, parity=parity, compiled=compiled)


def test_place_tells_what_it_is(tmp_path):
    write(tmp_path)
    (sidecar,) = tmp_path.rglob(SIDECAR_NAME)
    assert sidecar.relative_to(tmp_path).as_posix() == (
        "engines/abababababab/openvino-2026.4.1-22982-e213a147257-releases-2026-4-"
        "intel-r-xeon-r-gold-6338-cpu-2.00ghz-bf16/regions/engine.json"
    )
    content = json.loads(sidecar.read_text("utf-8"))
    assert content["key"]["onnx_sha256"] == KEY.onnx_sha256
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
def test_any_difference_in_the_key_counts_as_absent(tmp_path, name):
    other = {"capabilities": ("FP32",), "gate": {"dice": 0.5}}.get(name, f"{getattr(KEY, name)}x")
    write(tmp_path)
    changed = replace(KEY, **{name: other})
    place = changed.directory(tmp_path)
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        KEY.directory(tmp_path).rename(place)
    assert read_engine(tmp_path, changed) is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda place: (place / SIDECAR_NAME).write_text("{", "utf-8"),
        lambda place: (place / SIDECAR_NAME).write_text("[]", "utf-8"),
        lambda place: (place / SIDECAR_NAME).write_bytes(b"\xff\xfe"),
        lambda place: (place / SIDECAR_NAME).unlink(),
        lambda place: next(place.glob("*.engine")).write_bytes(b"enginf"),
        lambda place: next(place.glob("*.engine")).write_bytes(b""),
        lambda place: next(place.glob("*.engine")).unlink(),
    ],
)
def test_damage_counts_as_absent_and_is_repaired_by_writing_again(tmp_path, damage):
    write(tmp_path)
    damage(KEY.directory(tmp_path))
    assert read_engine(tmp_path, KEY) is None
    write(tmp_path)
    record = read_engine(tmp_path, KEY)
    assert record is not None and record.compiled == b"engine"


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
