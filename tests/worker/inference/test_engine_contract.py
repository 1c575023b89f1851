"""What every engine backend must do; a new backend joins by its name in ``BACKENDS``."""

import threading

import numpy as np
import onnx
import onnx.reference
import pytest
from tiny_bundle import (
    CAM_SIZE,
    REGIONS,
    SIZE,
    VARIANTS,
    classification_network,
    picture,
    segmentation_network,
    with_nan_weight,
    write_variant,
)

from worker.inference.engines.backends import BACKENDS, GPU_BACKENDS, open_backend
from worker.inference.engines.base import (
    BUCKETS,
    Engine,
    EngineBuildError,
    EngineClosedError,
    EngineError,
    EngineSpec,
    Precision,
    TensorSpec,
)
from worker.inference.engines.cuda import count_gpus

NETWORKS = {
    "segmentation": segmentation_network(),
    "classification": classification_network(),
    "nan": with_nan_weight(segmentation_network()),
}
#: How far the arithmetic of a precision may be from float32 on these networks.
TOLERANCE = {
    Precision.FP32: 1e-5,
    Precision.BF16: 3e-2,
    Precision.FP16: 5e-3,
    Precision.INT8: 3e-2,
    Precision.INT8_FP32: 2e-2,
}


def _cases():
    gpu = count_gpus() > 0
    for name in BACKENDS:
        # On a CPU the torch backend is opened by its name and runs there.
        marks = [pytest.mark.gpu] if gpu and name in GPU_BACKENDS else []
        try:
            backend = open_backend(name)
        except EngineBuildError as error:
            yield pytest.param(None, None, id=name, marks=[*marks, pytest.mark.skip(reason=str(error))])
            continue
        for precision in backend.supported_precisions():
            yield pytest.param(backend, precision, id=f"{name}-{precision}", marks=marks)


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """Gives the file of a network that a backend compiles for a precision."""
    directory = tmp_path_factory.mktemp("networks")

    def file_of(name: str, variant: str):
        path = directory / f"{name}.{variant or 'onnx'}"
        if path.exists():
            return path
        if variant:
            write_variant(NETWORKS[name], variant, path)
        else:
            onnx.save(NETWORKS[name], path)
        return path

    return file_of


@pytest.fixture(scope="module")
def compiled(networks):
    """Compiles a network once for all tests that do not close the engine: some backends take seconds."""
    engines: dict[tuple[str, str, str], Engine] = {}

    def compiled(backend, precision, name: str) -> Engine:
        key = (backend.name, precision, name)
        if key not in engines:
            file = networks(name, backend.variant(precision))
            engines[key] = backend.compile(file, precision, threads=1)
        return engines[key]

    yield compiled
    for engine in engines.values():
        engine.close()


@pytest.fixture(scope="module", params=["compiled", "loaded"])
def way(request):
    return request.param


@pytest.fixture
def make(backend, precision, way, compiled):
    """Makes an engine of a network, compiled or loaded from its exported form."""
    engines = []

    def make(name: str = "segmentation") -> Engine:
        engine = compiled(backend, precision, name)
        if way == "loaded":
            engine = backend.load(engine.export(), precision, threads=1)
            engines.append(engine)
        return engine

    yield make
    for engine in engines:
        engine.close()


def batch(size: int) -> np.ndarray:
    return np.stack([picture(seed) for seed in range(size)])


pytestmark = pytest.mark.parametrize(("backend", "precision"), list(_cases()))


def test_says_what_it_is(make, backend, precision):
    engine = make()
    assert engine.backend == backend.name
    assert engine.backend_version == backend.version and engine.backend_version
    assert engine.device == backend.device and engine.device
    assert engine.precision is precision
    assert bool(engine.how) == (precision.eight_bit or backend.name == "torch")


def test_spec_is_that_of_the_network(make):
    assert make("segmentation").spec == EngineSpec(
        (TensorSpec("image", (None, 1, SIZE, SIZE), "float32"),),
        (TensorSpec("probabilities", (None, REGIONS, SIZE, SIZE), "float32"),),
    )
    assert make("classification").spec == EngineSpec(
        (TensorSpec("image", (None, 1, SIZE, SIZE), "float32"),),
        (
            TensorSpec("probabilities", (None, 2), "float32"),
            TensorSpec("cam", (None, 2, CAM_SIZE, CAM_SIZE), "float32"),
        ),
    )


@pytest.mark.parametrize("name", ["segmentation", "classification"])
def test_says_what_the_reference_interpreter_says(make, precision, name):
    model = NETWORKS[name]
    names = [output.name for output in model.graph.output]
    expected = onnx.reference.ReferenceEvaluator(model).run(names, {"image": batch(3)})
    outputs = make(name).run(batch(3))
    assert list(outputs) == names
    for output, values in zip(names, expected, strict=True):
        scale = max(1.0, float(np.abs(values).max()))
        np.testing.assert_allclose(outputs[output], values, atol=TOLERANCE[precision] * scale)


def test_a_film_gets_the_same_in_any_batch(make, precision):
    engine = make()
    whole = engine.run(batch(3))["probabilities"]
    for index in range(3):
        alone = engine.run(batch(3)[index : index + 1])["probabilities"]
        np.testing.assert_allclose(alone[0], whole[index], atol=TOLERANCE[precision])
    assert engine.run(batch(5))["probabilities"].shape == (5, REGIONS, SIZE, SIZE)


def test_more_films_than_any_bucket_holds(make, precision):
    engine = make("classification")
    many = np.tile(batch(5), (BUCKETS[-1] // 5 + 2, 1, 1, 1))
    outputs = engine.run(many)
    first = engine.run(batch(5))
    for name, value in outputs.items():
        assert len(value) == len(many) > BUCKETS[-1]
        scale = max(1.0, float(np.abs(value).max()))
        np.testing.assert_allclose(
            value, np.tile(first[name], (len(many) // 5, *[1] * (value.ndim - 1))), atol=TOLERANCE[precision] * scale
        )


def test_outputs_are_float32_and_belong_to_the_caller(make):
    engine = make("classification")
    first = engine.run(batch(1))
    kept = {name: value.copy() for name, value in first.items()}
    engine.run(batch(2)[1:])
    for name, value in first.items():
        assert value.dtype == np.float32 and value.flags.writeable
        np.testing.assert_array_equal(value, kept[name])


def test_same_input_same_output(make):
    engine = make()
    first = engine.run(batch(2))["probabilities"]
    for _ in range(3):
        np.testing.assert_array_equal(engine.run(batch(2))["probabilities"], first)


def test_four_threads_get_what_one_gets(make):
    engine = make()
    expected = [engine.run(batch(4)[index : index + 1])["probabilities"] for index in range(4)]
    found: dict[int, list[np.ndarray]] = {index: [] for index in range(4)}

    def work(index: int) -> None:
        for _ in range(20):
            found[index].append(engine.run(batch(4)[index : index + 1])["probabilities"])

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index in range(4):
        assert len(found[index]) == 20
        for output in found[index]:
            np.testing.assert_array_equal(output, expected[index])


def test_takes_pictures_that_are_not_contiguous(make):
    engine = make()
    turned = np.ascontiguousarray(batch(1).transpose(0, 1, 3, 2)).transpose(0, 1, 3, 2)
    assert not turned.flags.c_contiguous
    np.testing.assert_array_equal(engine.run(turned)["probabilities"], engine.run(batch(1))["probabilities"])


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (np.zeros((1, 1, SIZE, SIZE), np.float64), "must be float32, got float64"),
        (np.zeros((1, 1, SIZE, SIZE), np.uint8), "must be float32, got uint8"),
        ([[0.0]], "must be float32, got list"),
        (np.zeros((1, 3, SIZE, SIZE), np.float32), r"got the shape \(1, 3, 32, 32\)"),
        (np.zeros((1, 1, SIZE, SIZE + 1), np.float32), r"got the shape \(1, 1, 32, 33\)"),
        (np.zeros((1, SIZE, SIZE), np.float32), r"got the shape \(1, 32, 32\)"),
        (np.zeros((0, 1, SIZE, SIZE), np.float32), r"got the shape \(0, 1, 32, 32\)"),
        (np.full((1, 1, SIZE, SIZE), np.nan, np.float32), "not finite"),
        (np.full((1, 1, SIZE, SIZE), np.inf, np.float32), "not finite"),
    ],
)
def test_refuses_what_the_network_does_not_take(make, bad, words):
    engine = make()
    with pytest.raises(EngineError, match=words):
        engine.run(bad)
    assert engine.run(batch(1))["probabilities"].shape == (1, REGIONS, SIZE, SIZE)


def test_output_that_is_not_finite_is_an_error(make):
    with pytest.raises(EngineError, match="output probabilities holds numbers that are not finite"):
        make("nan").run(batch(1))


def test_close_may_be_called_again_and_ends_the_engine(backend, precision, compiled):
    engine = backend.load(compiled(backend, precision, "segmentation").export(), precision)
    engine.warm_up()
    engine.close()
    engine.close()
    with pytest.raises(EngineClosedError):
        engine.run(batch(1))


def test_broken_files_are_build_errors(backend, precision, tmp_path):
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"not a network")
    with pytest.raises(EngineBuildError):
        backend.compile(broken, precision)
    with pytest.raises(EngineBuildError):
        backend.compile(tmp_path / "absent.onnx", precision)
    for compiled in (b"", b"not an engine"):
        with pytest.raises(EngineBuildError):
            backend.load(compiled, precision)


def test_truncated_engine_is_a_build_error(backend, precision, compiled):
    engine = compiled(backend, precision, "segmentation")
    content = engine.export()
    assert content == engine.export()
    with pytest.raises(EngineBuildError):
        backend.load(content[: len(content) // 2], precision)


def test_float32_is_the_last_resort(backend, precision):
    assert backend.supported_precisions()[-1] is Precision.FP32
    assert all(backend.variant(each) in ("", "torch", *VARIANTS) for each in backend.supported_precisions())
    for unsupported in set(Precision) - set(backend.supported_precisions()):
        with pytest.raises(EngineBuildError, match=f"does not compute in {unsupported}"):
            backend.load(b"", unsupported)
