"""The backend for exported programs: what the contract suite does not see of it."""

from __future__ import annotations

import contextlib
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tiny_bundle import SIZE, classification_network, make_bundle, picture, segmentation_network

torch = pytest.importorskip("torch", reason="the extra train has it")

from tiny_program import TinyNetwork, write_tiny_program  # noqa: E402

from worker.inference.bundles import load_bundle  # noqa: E402
from worker.inference.engines import torch as ours  # noqa: E402
from worker.inference.engines.base import BUCKETS, EngineBuildError, Precision  # noqa: E402
from worker.inference.engines.torch import TorchBackend, TorchEngine, TorchGpuEngine  # noqa: E402


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("programs")
    write_tiny_program(segmentation_network(), folder / "regions.pt2")
    write_tiny_program(classification_network(), folder / "findings.pt2")
    return folder


class HalfBackend(TorchBackend):
    """A CPU that is said to compute in all formats: it does, slowly."""

    def supported_precisions(self) -> tuple[Precision, ...]:
        return (Precision.FP16, Precision.BF16, Precision.FP32)


def batch(count: int) -> np.ndarray:
    return np.stack([picture(seed) for seed in range(count)])


def expected(model: Any, count: int) -> list[np.ndarray]:
    with torch.no_grad():
        answers = TinyNetwork(model)(torch.from_numpy(batch(count)))
    return [answer.numpy() for answer in (answers if isinstance(answers, tuple) else (answers,))]


def test_a_program_does_not_tell_where_it_was_made(programs: Path) -> None:
    with zipfile.ZipFile(programs / "regions.pt2") as archive:
        content = b"".join(archive.read(name) for name in archive.namelist())
    for word in (str(Path(__file__).parents[4]).encode(), b"site-packages", b"tiny_program.py", b"/home/"):
        assert word not in content


@pytest.mark.parametrize(("precision", "tolerance"), [(Precision.FP16, 5e-3), (Precision.BF16, 3e-2)])
def test_half_formats_compute_inside_between_float32(programs: Path, precision: Precision, tolerance: float) -> None:
    engine = HalfBackend().compile(programs / "findings.pt2", precision, threads=1)
    outputs = engine.run(batch(3))
    differences = []
    for value, reference in zip(outputs.values(), expected(classification_network(), 3), strict=True):
        assert value.dtype == np.float32
        differences.append(float(np.abs(value - reference).max() / max(1.0, np.abs(reference).max())))
    assert 0 < max(differences) < tolerance


def test_what_cannot_be_compiled_runs_uncompiled_and_says_so(
    programs: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*arguments: Any) -> bytes:
        raise RuntimeError("no compiler\nfound.")

    monkeypatch.setattr(ours, "_compiled", broken)
    backend = TorchBackend(inductor=True)
    assert backend.capabilities[-1] == "inductor" and TorchBackend(inductor=False).capabilities[-1] == "eager"
    engine = backend.compile(programs / "regions.pt2", Precision.FP32)
    assert engine.how == "uncompiled"
    assert "Inductor cannot compile regions.pt2, it runs uncompiled: found" in caplog.text


@pytest.mark.slow
def test_inductor_makes_a_package_that_is_loaded_again(programs: Path) -> None:
    backend = TorchBackend(inductor=True)
    engine = backend.compile(programs / "findings.pt2", Precision.FP32, threads=1)
    if engine.how != "Inductor":
        pytest.skip("this machine has no C++ compiler")
    again = backend.load(engine.export(), Precision.FP32)
    for count in (1, 2, 7):
        references = expected(classification_network(), count)
        for each in (engine, again):
            for value, reference in zip(each.run(batch(count)).values(), references, strict=True):
                np.testing.assert_allclose(value, reference, atol=1e-5)


def test_a_machine_without_pytorch_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(ours.importlib, "import_module", absent)
    with pytest.raises(EngineBuildError, match="pip install torch"):
        TorchBackend()


def test_a_file_without_names_of_outputs_is_refused(tmp_path: Path) -> None:
    program = torch.export.export(TinyNetwork(segmentation_network()), (torch.zeros(2, 1, SIZE, SIZE),))
    torch.export.save(program, tmp_path / "foreign.pt2")
    with pytest.raises(EngineBuildError, match=r"cannot build foreign\.pt2 in fp32"):
        TorchBackend().compile(tmp_path / "foreign.pt2", Precision.FP32)


def test_a_bundle_loads_when_the_backend_is_named(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("on a GPU the contract suite does this")
    directory = make_bundle(tmp_path / "bundle", classifiers=1, variants=("torch",))
    bundle = load_bundle(directory, home=tmp_path / "home", backend="torch", threads=1)
    description = bundle.engine_description
    assert (description["backend"], description["precision"], description["how"]) == ("torch", "fp32", "uncompiled")
    assert all(report["passed"] for report in bundle.parity.values())
    again = load_bundle(directory, home=tmp_path / "home", backend="torch", build="never", threads=1)
    assert sum("from the cache" in note for note in again.notes) == 2


class PretendedGraph:
    """Computes anew when it is replayed, into the tensors that were captured."""

    def __init__(self) -> None:
        self.work: Any = None

    def replay(self) -> None:
        self.work()


def pretended_torch(captures: list[int]) -> Any:
    """PyTorch whose GPU is the CPU, and whose graphs run operator by operator."""

    class Stream:
        def synchronize(self) -> None:
            pass

    @contextlib.contextmanager
    def graph(graph: PretendedGraph, *, pool: Any, stream: Stream, capture_error_mode: str) -> Any:
        assert isinstance(stream, Stream) and capture_error_mode == "thread_local"
        captures.append(1)
        yield

    cuda = SimpleNamespace(
        Stream=Stream,
        stream=lambda stream: contextlib.nullcontext(),
        graph_pool_handle=lambda: "pool",
        CUDAGraph=PretendedGraph,
        graph=graph,
        empty_cache=lambda: captures.append(0),
    )

    class Torch:
        def __init__(self) -> None:
            self.cuda = cuda

        def __getattr__(self, name: str) -> Any:
            return getattr(torch, name)

        def zeros(self, shape: Any, device: str) -> Any:
            assert device == "cuda"
            return torch.zeros(shape)

        def empty(self, shape: Any, pin_memory: bool) -> Any:
            assert pin_memory
            return torch.full(shape, float("nan"))

    return Torch()


def test_the_gpu_engines_buckets_and_buffers(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own logic only: what CUDA does is tested on a real GPU."""
    model = classification_network()
    small = TorchBackend(inductor=False).compile(programs / "findings.pt2", Precision.FP32, threads=1)
    assert isinstance(small, TorchEngine) and small._call is not None
    captures: list[int] = []
    library = pretended_torch(captures)
    monkeypatch.setattr(ours, "_torch", lambda: library)
    call = small._call
    engine = TorchGpuEngine(
        call, b"package", backend_version="2", device="GPU", precision=Precision.FP16, spec=small.spec, how="graphs"
    )  # fmt: skip
    original = engine._capture

    def capture(library: Any, bucket: int) -> Any:
        graph, image, answers = original(library, bucket)

        def work() -> None:
            for target, source in zip(answers, call(image), strict=True):
                target.copy_(source)

        graph.work = work
        return graph, image, answers

    monkeypatch.setattr(engine, "_capture", capture)
    for count in (40, 32, 5, 1, 3):
        outputs = engine.run(batch(count))
        for value, reference in zip(outputs.values(), expected(model, count), strict=True):
            assert value.dtype == np.float32 and len(value) == count
            np.testing.assert_allclose(value, reference, atol=1e-5)
    engine.warm_up()
    assert sum(captures) == len(BUCKETS) and engine.export() == b"package"
    engine.close()
    assert captures[-1] == 0
