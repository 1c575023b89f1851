from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from passthrough import PassthroughBundle, chest_labels
from tiny_bundle import CAM_SIZE, REGIONS, SIZE, make_bundle, picture

from schema.findings import Finding
from worker.film.prepared import FilmFacts, Geometry, PreparedFilm
from worker.inference.bundles import load_bundle
from worker.inference.engines.base import EngineClosedError, EngineError
from worker.inference.networks import NetworkOutput, infer, scale_by_temperature

FACTS = FilmFacts("1.2", "1.2", "MONOCHROME2", "DX", "CHEST", "AP", 12, None, "window")


def film(tensors: dict[str, np.ndarray]) -> PreparedFilm:
    return PreparedFilm(tensors, Geometry(SIZE, SIZE), FACTS, "0" * 64, "0" * 64)


def films_for(bundle, count: int) -> list[PreparedFilm]:
    return [film({member.name: picture(index) for member in bundle.manifest.members}) for index in range(count)]


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    """Loads (once) a tiny bundle with the given make_bundle arguments."""
    root = tmp_path_factory.mktemp("bundles")
    loaded = {}

    def load(**arguments):
        key = repr(sorted(arguments.items()))
        if key not in loaded:
            directory = make_bundle(root / str(len(loaded)), **arguments)
            loaded[key] = load_bundle(directory, home=root / "home", precision="fp32", threads=1)
        return loaded[key]

    yield load
    for bundle in loaded.values():
        bundle.close()


def raw(bundle, film, member):
    return {name: value[0] for name, value in bundle.engines[member].run(film.tensors[member][np.newaxis]).items()}


@pytest.mark.parametrize("findings", [(), ("pneumonia", "no_finding"), tuple(Finding)])
@pytest.mark.parametrize(("segmenters", "classifiers"), [(1, 1), (2, 3)])
def test_ensembles(load, findings, segmenters, classifiers):
    bundle = load(segmenters=segmenters, classifiers=classifiers, findings=tuple(map(str, findings)), temperature=1.5)
    films = films_for(bundle, 2)
    outputs = infer(bundle, films)
    assert len(outputs) == 2
    for prepared, output in zip(films, outputs, strict=True):
        assert isinstance(output, NetworkOutput)
        masks = [raw(bundle, prepared, f"regions-{index}")["probabilities"] for index in range(segmenters)]
        np.testing.assert_allclose(output.probabilities, np.mean(masks, axis=0), atol=1e-6)
        assert output.probabilities.shape == (REGIONS, SIZE, SIZE) and output.probabilities.dtype == np.float32
        assert output.scores.shape == output.spread.shape == (len(findings),)
        assert output.seconds["segment"] > 0.0
        if not findings:
            assert output.cam is None and output.member_scores == {} and "classify" not in output.seconds
            continue
        names = [f"findings-{index}" for index in range(classifiers)]
        members = [raw(bundle, prepared, name) for name in names]
        logits = [np.log(m["probabilities"] / (1 - m["probabilities"])) for m in members]
        scaled = [1 / (1 + np.exp(-logit / 1.5)) for logit in logits]
        assert list(output.member_scores) == names
        np.testing.assert_allclose(list(output.member_scores.values()), scaled, atol=1e-5)
        np.testing.assert_allclose(output.scores, np.mean(scaled, axis=0), atol=1e-5)
        np.testing.assert_allclose(output.spread, np.max(scaled, axis=0) - np.min(scaled, axis=0), atol=1e-5)
        assert output.cam.shape == (len(findings), CAM_SIZE, CAM_SIZE)
        np.testing.assert_allclose(output.cam, np.mean([np.maximum(m["cam"], 0) for m in members], axis=0), atol=1e-5)


@pytest.mark.parametrize("engine_batch", [1, 2, 5, 16])
def test_engine_batch_changes_nothing(load, engine_batch):
    bundle = load()
    films = films_for(bundle, 5)
    for one, many in zip(infer(bundle, films), infer(bundle, films, engine_batch=engine_batch), strict=True):
        np.testing.assert_allclose(many.probabilities, one.probabilities, atol=1e-6)
        np.testing.assert_allclose(many.scores, one.scores, atol=1e-6)
        np.testing.assert_allclose(many.cam, one.cam, atol=1e-5)


def test_no_films_no_outputs(load):
    assert infer(load(), []) == []


@settings(max_examples=25, deadline=None)
@given(
    bad=st.dictionaries(st.integers(0, 8), st.sampled_from(["nan", "inf", "missing", "shape", "dtype"]), max_size=9),
    member=st.sampled_from(["regions-0", "findings-1"]),
    engine_batch=st.integers(1, 10),
)
def test_only_the_bad_films_fail(load, bad, member, engine_batch):
    bundle = load()
    good = films_for(bundle, 9)
    spoil = {
        "nan": lambda tensor: np.where(tensor == tensor.max(), np.float32(np.nan), tensor),
        "inf": lambda tensor: tensor + np.float32(np.inf),
        "shape": lambda tensor: tensor[:, 1:],
        "dtype": lambda tensor: tensor.astype(np.float64),
    }
    films = list(good)
    for index, how in bad.items():
        tensors = dict(good[index].tensors)
        if how == "missing":
            del tensors[member]
        else:
            tensors[member] = spoil[how](tensors[member])
        films[index] = replace(good[index], tensors=tensors)
    expected = infer(bundle, good)
    outputs = infer(bundle, films, engine_batch=engine_batch)
    assert {index for index, output in enumerate(outputs) if isinstance(output, EngineError)} == set(bad)
    for index, output in enumerate(outputs):
        if index not in bad:
            np.testing.assert_allclose(output.probabilities, expected[index].probabilities, atol=1e-6)
            np.testing.assert_allclose(output.scores, expected[index].scores, atol=1e-6)


def test_overflow_inside_the_network_is_that_films_error(load):
    bundle = load()
    films = films_for(bundle, 4)
    tensors = {name: tensor * np.float32(3e38) for name, tensor in films[2].tensors.items()}
    films[2] = replace(films[2], tensors=tensors)
    outputs = infer(bundle, films, engine_batch=4)
    assert [isinstance(output, EngineError) for output in outputs] == [False, False, True, False]
    assert "not finite" in str(outputs[2]) and not str(outputs[2]).endswith(".")


def test_a_closed_bundle_blames_no_film(tmp_path):
    bundle = load_bundle(make_bundle(tmp_path / "bundle"), home=tmp_path / "home", threads=1)
    films = films_for(bundle, 2)
    bundle.close()
    bundle.close()
    with pytest.raises(EngineClosedError):
        infer(bundle, films)


def test_maps_of_different_sizes_are_averaged_on_the_first_grid():
    bundle = PassthroughBundle(size=32, classifiers=("a", "b"))
    coarse = bundle.engines["b"]
    coarse._outputs = {**coarse._outputs, "cam": np.full((10, 4, 4), 3.0, np.float32)}
    coarse.spec = type(coarse.spec)(
        coarse.spec.inputs,
        tuple(replace(t, shape=(None, 10, 4, 4)) if t.name == "cam" else t for t in coarse.spec.outputs),
    )
    (output,) = infer(bundle, films_for(bundle, 1))
    np.testing.assert_allclose(output.cam, (bundle.engines["a"]._outputs["cam"] + 3.0) / 2, atol=1e-5)


def test_a_stand_in_bundle_gives_the_full_payload():
    bundle = PassthroughBundle(size=256)
    tensors = {name: np.zeros((1, 256, 256), np.float32) for name in bundle.plan}
    outputs = infer(bundle, [film(tensors), film({name: tensor + 1 for name, tensor in tensors.items()})])
    for output in outputs:
        np.testing.assert_array_equal(output.probabilities.argmax(axis=0), chest_labels(256))
        assert output.cam.shape == (10, 16, 16)
        assert (output.spread > 0).all()
    assert (outputs[1].scores > outputs[0].scores).all()


@given(
    probabilities=st.lists(st.floats(0, 1, width=32), min_size=1, max_size=10),
    temperature=st.floats(0.1, 10.0),
)
def test_temperature_scaling_keeps_order_and_side(probabilities, temperature):
    before = np.array(probabilities, np.float32)
    after = scale_by_temperature(before, temperature)
    assert after.dtype == np.float32 and ((after >= 0) & (after <= 1)).all()
    assert (np.diff(after[np.argsort(before)]) >= 0).all()
    assert (after[before > 0.5] >= 0.5).all() and (after[before < 0.5] <= 0.5).all()


def test_temperature_scaling_values():
    half_up = np.array([0.8], np.float32)
    # logit(0.8) = ln 4; divided by 2 it is ln 2, whose sigmoid is 2/3.
    np.testing.assert_allclose(scale_by_temperature(half_up, 2.0), [2 / 3], rtol=1e-6)
    assert scale_by_temperature(half_up, 1.0) is half_up
