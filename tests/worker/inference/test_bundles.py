import json
import logging
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
from phantom_bundle import PHANTOM_BUNDLE
from tiny_bundle import classification_network, make_bundle, picture, segmentation_network, with_nan_weight

from schema.bundle import BundleError, read_manifest, sha256_of, write_manifest
from worker.inference import member_engines
from worker.inference.bundles import load_bundle
from worker.inference.cache import SIDECAR_NAME
from worker.inference.engines import backends
from worker.inference.engines.base import EngineBuildError, Precision
from worker.inference.engines.openvino import OpenVinoBackend, OpenVinoEngine
from worker.inference.parity import ParityThresholds

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def tiny(tmp_path):
    return make_bundle(tmp_path / "bundle")


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


def sidecars(home):
    return {path.parent.name: json.loads(path.read_text("utf-8")) for path in home.rglob(SIDECAR_NAME)}


class RoundingBackend(OpenVinoBackend):
    """A processor whose bfloat16 is worse than bfloat16: it gets the classes of the segmentation wrong."""

    def supported_precisions(self):
        return (Precision.BF16, Precision.FP32)

    def compile(self, onnx, precision, *, threads=None):
        engine = super().compile(onnx, Precision.FP32, threads=threads)
        if precision is Precision.BF16:
            engine.precision = precision
            whole = engine._execute
            engine._execute = lambda batch: {
                name: np.roll(value, 2, axis=-1) if value.shape[1] == 8 else value
                for name, value in whole(batch).items()
            }
        return engine

    def load(self, compiled, precision, *, threads=None):
        engine = super().load(compiled, Precision.FP32, threads=threads)
        engine.precision = precision
        return engine


def test_loads_a_bundle(tiny, home):
    bundle = load_bundle(tiny, home=home, precision="fp32", threads=1)
    assert bundle.manifest == read_manifest(tiny)
    assert bundle.directory == tiny and bundle.sha256 == sha256_of(tiny / "bundle.json")
    assert list(bundle.engines) == ["regions-0", "findings-0", "findings-1"] == list(bundle.plan)
    description = bundle.engine_description
    assert json.loads(json.dumps(description)) == description
    assert description["backend"] == "openvino" and description["precision"] == "fp32"
    assert description["members"] == dict.fromkeys(bundle.engines, "fp32")
    assert all(report["passed"] for report in bundle.parity.values()) and set(bundle.parity) == set(bundle.engines)
    assert bundle.notes[:-1] == tuple(f"{name}: fp32 built, parity passed on 2 films" for name in bundle.engines)
    assert bundle.notes[-1] == f"uses openvino {description['backend_version']} on {description['device']}"
    bundle.close()


def test_second_load_takes_the_cache_and_skips_the_gate(tiny, home, monkeypatch):
    first = load_bundle(tiny, home=home, precision="fp32", threads=1)
    before = sidecars(home)
    assert set(before) == set(first.engines)
    assert before["regions-0"]["spec"] == first.engines["regions-0"].spec.to_json()

    def must_not_run(*arguments):
        raise AssertionError("the gate ran")

    monkeypatch.setattr(member_engines, "check_parity", must_not_run)
    monkeypatch.setattr(OpenVinoBackend, "compile", must_not_run)
    second = load_bundle(tiny, home=home, precision="fp32", threads=1)
    assert all("from the cache" in note for note in second.notes[:-1]) and len(second.notes) == 4
    assert sidecars(home) == before and second.parity == first.parity
    image = picture(1)[np.newaxis]
    for name in first.engines:
        for output, value in first.engines[name].run(image).items():
            np.testing.assert_array_equal(second.engines[name].run(image)[output], value)


def test_engines_from_the_cache_are_warmed_up_side_by_side(tiny, home, monkeypatch):
    together = threading.Barrier(3)
    original = OpenVinoEngine.warm_up

    def meet(engine):
        together.wait(timeout=60)
        original(engine)

    load_bundle(tiny, home=home, precision="fp32", threads=1).close()
    monkeypatch.setattr(OpenVinoEngine, "warm_up", meet)
    bundle = load_bundle(tiny, home=home, precision="fp32", threads=1)
    assert list(bundle.engines) == ["regions-0", "findings-0", "findings-1"]
    assert [note.split(":")[0] for note in bundle.notes[:-1]] == list(bundle.engines)
    assert not together.broken


def test_one_that_fails_leaves_no_other_open(tiny, home, monkeypatch):
    load_bundle(tiny, home=home, precision="fp32", threads=1).close()
    closed = []

    def note(engine):
        closed.append(engine)

    monkeypatch.setattr(OpenVinoEngine, "_release", note)
    (path,) = home.rglob(f"findings-0/{SIDECAR_NAME}")
    path.write_text("{}", "utf-8")
    with pytest.raises(BundleError, match="findings-0"):
        load_bundle(tiny, home=home, precision="fp32", threads=1, build="never")
    assert len(closed) == 2


@pytest.mark.parametrize("change", ["network_sha256", "backend_version", "device", "precision", "gate", "capabilities"])
def test_cached_engine_of_something_else_is_built_again(tiny, home, change):
    load_bundle(tiny, home=home, precision="fp32", threads=1)
    path = next(home.rglob(f"regions-0/{SIDECAR_NAME}"))
    sidecar = json.loads(path.read_text("utf-8"))
    sidecar["key"][change] = "other"
    path.write_text(json.dumps(sidecar), "utf-8")
    again = load_bundle(tiny, home=home, precision="fp32", threads=1)
    assert again.notes[0].endswith(f"is refused, building again: its engine.json has another {change}")
    assert again.notes[1] == "regions-0: fp32 built, parity passed on 2 films"
    assert "from the cache" in again.notes[2]
    assert json.loads(path.read_text("utf-8"))["key"][change] != "other"


def test_cached_engine_the_backend_refuses_is_built_again(tiny, home, monkeypatch):
    load_bundle(tiny, home=home, precision="fp32", threads=1)
    original = OpenVinoBackend.load
    monkeypatch.setattr(
        OpenVinoBackend, "load", lambda self, compiled, *rest, **more: original(self, compiled[:100], *rest, **more)
    )
    again = load_bundle(tiny, home=home, precision="fp32", threads=1)
    assert "engine is refused, building again: it does not load: OpenVINO cannot build" in again.notes[0]
    assert again.engines["regions-0"].run(picture(0)[np.newaxis])["probabilities"].shape == (1, 8, 32, 32)


def test_refused_precision_falls_to_the_next_and_says_so(tiny, home, monkeypatch, caplog):
    monkeypatch.setitem(backends.BACKENDS, "rounding", lambda folder: RoundingBackend())
    with caplog.at_level(logging.WARNING):
        bundle = load_bundle(tiny, home=home, backend="rounding", threads=1)
    assert bundle.engine_description["members"] == {"regions-0": "fp32", "findings-0": "bf16", "findings-1": "bf16"}
    assert bundle.engine_description["precision"] == "bf16+fp32"
    assert bundle.notes[0].startswith("regions-0: bf16 refused: Dice of ")
    assert bundle.notes[1] == "regions-0: fp32 built, parity passed on 2 films"
    assert "regions-0: bf16 refused" in caplog.text

    monkeypatch.setattr(member_engines, "check_parity", None)
    again = load_bundle(tiny, home=home, backend="rounding", threads=1)
    assert "bf16 refused" in again.notes[0] and "(tested 20" in again.notes[0]
    assert again.engine_description == bundle.engine_description


def test_precision_the_processor_lacks_is_said(tiny, home):
    bundle = load_bundle(tiny, home=home, precision="fp16", threads=1)
    assert bundle.notes[0].startswith("fp16 is not available with openvino on ")
    assert set(bundle.engine_description["members"].values()) <= {"bf16", "fp32"}


def test_a_hint_that_was_not_followed_is_refused(tiny):
    backend = OpenVinoBackend()
    if "BF16" in backend.capabilities:
        assert backend.compile(tiny / "regions-0.onnx", Precision.BF16).precision is Precision.BF16
    else:
        backend.capabilities = (*backend.capabilities, "BF16")
        with pytest.raises(EngineBuildError, match=r"was asked for bf16 on .* and uses f"):
            backend.compile(tiny / "regions-0.onnx", Precision.BF16)


@pytest.mark.parametrize("layer", [0, 1])
def test_weights_that_are_not_numbers_are_refused(tmp_path, home, layer):
    broken = with_nan_weight(segmentation_network(0), layer)
    directory = make_bundle(tmp_path / "broken", replace={"regions-0": broken})
    with pytest.raises(
        BundleError, match=r"cannot be loaded: no engine for regions-0 .* fp32 refused: .*carina doctor"
    ):
        load_bundle(directory, home=home, threads=1)


def test_other_weights_than_the_references_are_refused(tmp_path, home):
    directory = make_bundle(tmp_path / "other", replace={"findings-1": classification_network(99)})
    with pytest.raises(BundleError, match=r"no engine for findings-1 .*probability difference of pneumonia"):
        load_bundle(directory, home=home, threads=1)


@pytest.mark.parametrize("name", ["regions-0.onnx", "findings-1.onnx", "parity-1.npz"])
def test_tampered_file_is_refused_even_with_a_cache(tiny, home, name):
    load_bundle(tiny, home=home, threads=1).close()
    content = bytearray((tiny / name).read_bytes())
    content[len(content) // 2] ^= 1
    (tiny / name).write_bytes(content)
    with pytest.raises(BundleError, match=f"{name} is not the file its manifest names"):
        load_bundle(tiny, home=home, threads=1)


def rewrite(directory, **changes):
    """Write the manifest again with other fields and fresh SHA-256s."""
    raw = json.loads((directory / "bundle.json").read_text("utf-8")) | changes
    raw["files"] = {name: sha256_of(directory / name) for name in raw["files"]}
    (directory / "bundle.json").write_text(json.dumps(raw), "utf-8")
    write_manifest(directory, read_manifest(directory))


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (segmentation_network(0, regions=7), r"regions-0\.onnx does not fit .*8 classes.*has probabilities"),
        (segmentation_network(0, channels=3), r"takes image float32 \(batch, 3, 32, 32\)"),
        (classification_network(0, findings=8), r"has probabilities float32 \(batch, 8\)"),
    ],
)
def test_network_that_does_not_fit_the_manifest(tmp_path, home, network, words):
    with pytest.raises(BundleError, match=words):
        load_bundle(make_bundle(tmp_path / "bundle", replace={"regions-0": network}), home=home, threads=1)


def test_classifier_without_a_heat_map_is_refused(tmp_path, home):
    network = classification_network(11)
    del network.graph.output[1]
    with pytest.raises(BundleError, match="has no output cam"):
        load_bundle(make_bundle(tmp_path / "bundle", replace={"findings-1": network}), home=home, threads=1)


@pytest.mark.parametrize("name", ["../escape", "", "regions-0"])
def test_member_names_are_checked(tiny, home, name):
    members = json.loads((tiny / "bundle.json").read_text("utf-8"))["members"]
    members[1]["name"] = name
    rewrite(tiny, members=members)
    with pytest.raises(BundleError, match="member names must be distinct"):
        load_bundle(tiny, home=home, threads=1)


def test_bundle_without_parity_films_is_refused(tmp_path, home):
    with pytest.raises(BundleError, match="has no parity films"):
        load_bundle(make_bundle(tmp_path / "bundle", parity_films=0), home=home, threads=1)


@pytest.mark.parametrize(("option", "words"), [({"backend": "tea"}, "'tea'"), ({"precision": "fp7"}, "'fp7'")])
def test_unknown_options_are_named(tiny, home, option, words):
    with pytest.raises(BundleError, match=words):
        load_bundle(tiny, home=home, **option)


def test_a_home_that_cannot_be_written_costs_only_the_cache(tiny, tmp_path):
    home = tmp_path / "file"
    home.write_text("a file where a folder should be", "utf-8")
    bundle = load_bundle(tiny, home=home, precision="fp32", threads=1)
    assert "the engine cache cannot be written (Not a directory)" in bundle.notes[0]
    assert len(bundle.engines) == 3


def test_threads_that_load_at_once(tiny, home):
    with ThreadPoolExecutor(4) as threads:
        loaded = list(threads.map(lambda _: load_bundle(tiny, home=home, threads=1), range(4)))
    image = picture(0)[np.newaxis]
    for bundle in loaded:
        for name, engine in bundle.engines.items():
            for output, value in engine.run(image).items():
                np.testing.assert_array_equal(value, loaded[0].engines[name].run(image)[output])
    again = load_bundle(tiny, home=home, threads=1)
    assert sum("from the cache" in note for note in again.notes) == 3


def python(*arguments):
    return subprocess.Popen(
        [sys.executable, "-c", *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_processes_that_load_at_once_build_once(tiny, home):
    program = (
        "import sys; from pathlib import Path; from worker.inference.bundles import load_bundle\n"
        "bundle = load_bundle(Path(sys.argv[1]), home=Path(sys.argv[2]), precision='fp32', threads=1)\n"
        "print(sum('fp32 built' in note for note in bundle.notes), len(bundle.engines))"
    )
    running = [python(program, tiny, home) for _ in range(2)]
    built = []
    for process in running:
        output, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        count, engines = output.split()
        assert engines == "3"
        built.append(int(count))
    assert sum(built) == 3
    again = load_bundle(tiny, home=home, precision="fp32", threads=1)
    assert sum("from the cache" in note for note in again.notes) == 3


def test_needs_neither_torch_nor_onnx_and_sends_nothing(tiny, home):
    program = (
        "import sys; from pathlib import Path; import worker.inference.bundles, worker.inference.networks\n"
        "assert 'openvino' not in sys.modules\n"
        "worker.inference.bundles.load_bundle(Path(sys.argv[1]), home=Path(sys.argv[2]), threads=1)\n"
        "loaded = {name.split('.')[0] for name, module in sys.modules.items() if module is not None}\n"
        "assert 'openvino' in loaded\n"
        "assert not loaded & {'torch', 'onnx', 'openvino_telemetry', 'tensorrt'}, loaded"
    )
    process = python(program, tiny, home)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors


def test_threads_are_those_asked_for(tiny):
    engine = OpenVinoBackend().compile(tiny / "regions-0.onnx", Precision.FP32, threads=1)
    assert isinstance(engine, OpenVinoEngine)
    assert engine._compiled.get_property("INFERENCE_NUM_THREADS") == 1
    assert engine._compiled.get_property("PERFORMANCE_HINT") == "LATENCY"


def test_half_precision_weights_are_taken(tmp_path, home):
    network = segmentation_network(0)
    graph = network.graph
    for initializer in graph.initializer:
        weights = onnx.numpy_helper.to_array(initializer).astype(np.float16)
        name = initializer.name
        initializer.CopyFrom(onnx.numpy_helper.from_array(weights, f"{name}.half"))
        graph.node.insert(0, onnx.helper.make_node("Cast", [f"{name}.half"], [name], to=onnx.TensorProto.FLOAT))
    onnx.checker.check_model(network)
    directory = make_bundle(tmp_path / "half", replace={"regions-0": network})
    thresholds = ParityThresholds(dice=0.9, region_dice={})
    bundle = load_bundle(directory, home=home, precision="fp32", threads=1, thresholds=thresholds)
    assert bundle.engines["regions-0"].precision is Precision.FP32


def never(directory, home, **options):
    return load_bundle(directory, home=home, build="never", precision="fp32", threads=1, **options)


def test_never_builds_nothing_and_names_the_builders_command(tiny, home):
    with pytest.raises(BundleError, match=r"fp32 refused: it is not in the engine cache, and CARINA_ENGINE_BUILD is n"):
        never(tiny, home)
    with pytest.raises(BundleError, match=r"Run: carina engine build --bundle tiny:1"):
        never(tiny, home)
    assert not home.exists()
    load_bundle(tiny, home=home, precision="fp32", threads=1).close()
    bundle = never(tiny, home)
    assert len(bundle.engines) == 3 and all("from the cache" in note for note in bundle.notes[:3])


def test_never_says_for_what_else_there_are_engines(tiny, home, monkeypatch):
    load_bundle(tiny, home=home, precision="fp32", threads=1).close()
    backend = OpenVinoBackend()
    version, backend.version = backend.version, "2031.1"
    monkeypatch.setitem(backends.BACKENDS, "openvino", lambda folder: backend)
    with pytest.raises(
        BundleError, match=r"not in the engine cache for openvino 2031.1 on .* \(only for openvino"
    ) as caught:
        never(tiny, home)
    assert version in str(caught.value)


def test_never_refuses_a_tampered_engine_before_anything_loads_it(tiny, home, monkeypatch):
    load_bundle(tiny, home=home, precision="fp32", threads=1).close()
    file = next(home.rglob("findings-1/*.engine"))
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    loaded = []
    original = OpenVinoBackend.load
    monkeypatch.setattr(
        OpenVinoBackend,
        "load",
        lambda self, compiled, *rest, **more: loaded.append(compiled) or original(self, compiled, *rest, **more),
    )
    with pytest.raises(BundleError, match=r"findings-1 .*the cached engine is refused: .*SHA-256 differs"):
        never(tiny, home)
    assert len(loaded) == 2 and file.read_bytes() not in loaded
    again = load_bundle(tiny, home=home, precision="fp32", threads=1)
    assert any("findings-1: the cached fp32 engine is refused, building again" in note for note in again.notes)
    never(tiny, home)


def test_a_read_only_cache_serves(tiny, home, monkeypatch):
    load_bundle(tiny, home=home, precision="fp32", threads=1).close()

    def read_only(*arguments, **options):
        raise OSError(30, "Read-only file system")

    for name in ("mkdir", "write_bytes", "replace", "unlink"):
        monkeypatch.setattr(Path, name, read_only)
    for build in ("auto", "never"):
        bundle = load_bundle(tiny, home=home, build=build, precision="fp32", threads=1)
        assert sum("from the cache" in note for note in bundle.notes) == 3


def test_a_precision_without_a_network_is_passed_over_and_said(tiny, home):
    backend = OpenVinoBackend()
    if Precision.INT8 not in backend.supported_precisions():
        pytest.skip("this processor has no 8-bit arithmetic")
    bundle = load_bundle(tiny, home=home, threads=1)
    assert "regions-0: int8: the bundle has no network for it" in bundle.notes


class BrokenBackend(OpenVinoBackend):
    """A GPU's library: it opens, builds some networks and then fails."""

    name = "broken"

    def compile(self, network, precision, *, threads=None):
        if network.name.startswith("findings"):
            raise EngineBuildError("the GPU has no memory for it.")
        return super().compile(network, precision, threads=threads)


class MissingBackend:
    def __init__(self, folder):
        raise EngineBuildError("no such library.")


def test_auto_falls_to_the_next_backend_and_says_why(tiny, home, monkeypatch, caplog):
    order = {"missing": MissingBackend, "broken": lambda folder: BrokenBackend(), **backends.BACKENDS}
    monkeypatch.setattr(backends, "BACKENDS", order)
    with caplog.at_level(logging.WARNING):
        bundle = load_bundle(tiny, home=home, precision="fp32", threads=1)
    assert bundle.engine_description["backend"] == "openvino"
    assert {engine.backend for engine in bundle.engines.values()} == {"openvino"}
    assert (
        "missing is not used, trying broken: This machine cannot use the engine backend missing (no such" in caplog.text
    )
    assert "broken is not used, trying openvino: no engine for findings-0 with broken on " in caplog.text
    with pytest.raises(
        BundleError, match=r"no engine for findings-0 with broken on .* memory for it\. Run: carina doctor"
    ):
        load_bundle(tiny, home=home, backend="broken", precision="fp32", threads=1)


def test_a_library_that_changed_its_interface_falls_to_the_next_backend(tiny, home, monkeypatch):
    class Changed(OpenVinoBackend):
        name = "changed"

        def compile(self, network, precision, *, threads=None):
            raise AttributeError("module has no attribute 'Builder'")

    order = {"changed": lambda folder: Changed(), **backends.BACKENDS}
    monkeypatch.setattr(backends, "BACKENDS", order)
    bundle = load_bundle(tiny, home=home, precision="fp32", threads=1)
    assert bundle.engine_description["backend"] == "openvino"
    assert any("fp32 refused: changed failed: AttributeError: module has no attribute" in note for note in bundle.notes)


def test_auto_asks_gpu_backends_only_where_there_is_a_gpu(monkeypatch):
    monkeypatch.setattr(backends.cuda, "count_gpus", lambda: 0)
    assert backends.backends_to_try() == ("openvino",)
    monkeypatch.setattr(backends.cuda, "count_gpus", lambda: 1)
    assert backends.backends_to_try() == ("tensorrt", "torch", "openvino")
    assert backends.backends_to_try("torch") == ("torch",)


def test_an_engine_that_fails_at_warm_up_is_refused_and_not_kept(tiny, home, monkeypatch):
    monkeypatch.setattr(OpenVinoEngine, "warm_up", lambda self: self.run(np.full((1, 1, 32, 32), np.nan, np.float32)))
    with pytest.raises(BundleError, match=r"regions-0 .* it fails when it is warmed up: input image .* not finite"):
        load_bundle(tiny, home=home, precision="fp32", threads=1)
    assert sidecars(home) == {}


@pytest.mark.parametrize("build", ["", "sometimes"])
def test_unknown_ways_to_build_are_refused(tiny, home, build):
    with pytest.raises(BundleError, match="choose auto or never"):
        load_bundle(tiny, home=home, build=build)


@pytest.mark.skipif(not (PHANTOM_BUNDLE / "bundle.json").is_file(), reason="the packaged bundle is not there")
class TestPackagedBundle:
    def test_passes_the_gate_in_float32(self, home):
        bundle = load_bundle(PHANTOM_BUNDLE, home=home, precision="fp32")
        assert all(report["passed"] for report in bundle.parity.values())
        assert bundle.engine_description["precision"] == "fp32"
        bundle.close()

    def test_every_faster_precision_that_is_not_taken_is_accounted_for(self, home):
        bundle = load_bundle(PHANTOM_BUNDLE, home=home)
        assert all(report["passed"] for report in bundle.parity.values())
        order = OpenVinoBackend().supported_precisions()
        for name, precision in bundle.engine_description["members"].items():
            for passed_over in order[: order.index(precision)]:
                assert any(note.startswith(f"{name}: {passed_over}") for note in bundle.notes)
        bundle.close()
