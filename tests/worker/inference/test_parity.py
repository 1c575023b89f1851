from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from passthrough import PassthroughBundle

from schema.bundle import BundleError
from worker.inference.parity import Measure, ParityThresholds, check_parity

SIZE = 128


@pytest.fixture
def bundle():
    return PassthroughBundle(size=SIZE, findings=("pneumonia", "no_finding"), classifiers=("densenet",))


def gate(bundle, tmp_path, member, *films, thresholds=None):
    """Write reference films (member's arrays each) and run the gate on the bundle's engine."""
    names = tuple(f"film-{index}.npz" for index in range(len(films)))
    for name, film in zip(names, films, strict=True):
        np.savez(tmp_path / name, **{f"{member}.{key}": value for key, value in film.items()})
    manifest = replace(bundle.manifest, parity_films=names)
    (chosen,) = [m for m in manifest.members if m.name == member]
    return check_parity(bundle.engines[member], chosen, manifest, tmp_path, thresholds)


def reference(bundle, member):
    image = np.full((1, SIZE, SIZE), 0.25, np.float16)
    outputs = bundle.engines[member].run(image[np.newaxis].astype(np.float32))
    return {"input": image, **{name: value[0] for name, value in outputs.items()}}


def test_same_masks_pass(bundle, tmp_path):
    film = reference(bundle, "regions")
    report = gate(bundle, tmp_path, "regions", film, film)
    assert report.passed and report.sentences == () and report.films == 2
    regions = [region.name for region in bundle.manifest.regions]
    assert [f.subject for f in report.figures if f.measure is Measure.DICE] == regions
    assert all(f.value == (1.0 if f.measure is Measure.DICE else 0.0) for f in report.figures)


def test_half_precision_references_are_taken(bundle, tmp_path):
    film = {key: value.astype(np.float16) for key, value in reference(bundle, "densenet").items()}
    assert gate(bundle, tmp_path, "densenet", film).passed


def test_moved_masks_are_refused_with_the_worst_film_named(bundle, tmp_path):
    film = reference(bundle, "regions")
    moved = {**film, "probabilities": np.roll(film["probabilities"], 3, axis=2)}
    report = gate(bundle, tmp_path, "regions", film, moved)
    assert not report.passed
    shifts = {f.subject: f for f in report.figures if f.measure is Measure.CENTROID_SHIFT}
    assert shifts["left_lung"].value == pytest.approx(3.0) and shifts["left_lung"].film == "film-1.npz"
    assert any(s.startswith("Dice of carina is 0.") and "film-1.npz, least allowed 0.95" in s for s in report.sentences)
    written = report.to_json()
    assert written["passed"] is False and written["sentences"] == list(report.sentences)


def test_region_absent_in_both_is_agreement_absent_in_one_is_not(bundle, tmp_path):
    film = reference(bundle, "regions")
    without = film["probabilities"].copy()
    without[7] = 0.0
    report = gate(bundle, tmp_path, "regions", {**film, "probabilities": without})
    (carina,) = [f for f in report.figures if f.subject == "carina"]
    assert carina.measure is Measure.DICE and carina.value == 0.0 and not report.passed
    bundle.engines["regions"]._outputs = {"probabilities": without}
    report = gate(bundle, tmp_path, "regions", {**film, "probabilities": without})
    assert report.passed


@pytest.mark.parametrize(("difference", "passed"), [(0.009, True), (0.011, False)])
def test_probability_threshold(bundle, tmp_path, difference, passed):
    film = reference(bundle, "densenet")
    film["probabilities"] = film["probabilities"] + np.array([0, difference], np.float32)
    report = gate(bundle, tmp_path, "densenet", film)
    assert report.passed is passed
    if not passed:
        (sentence,) = report.sentences
        assert sentence.startswith("probability difference of no_finding is 0.0110 on film-0.npz, most allowed 0.01")


def test_other_heat_map_is_refused(bundle, tmp_path):
    film = reference(bundle, "densenet")
    report = gate(bundle, tmp_path, "densenet", {**film, "cam": np.roll(film["cam"], 2, axis=1)})
    assert not report.passed
    assert {f.measure for f in report.figures if not f.passed} == {Measure.CAM}


def test_thresholds_are_data(bundle, tmp_path):
    film = reference(bundle, "regions")
    moved = {**film, "probabilities": np.roll(film["probabilities"], 1, axis=2)}
    lenient = ParityThresholds(dice=0.5, region_dice={}, centroid_shift=1.5)
    assert not gate(bundle, tmp_path, "regions", moved).passed
    assert gate(bundle, tmp_path, "regions", moved, thresholds=lenient).passed


def test_engine_that_fails_is_refused(bundle, tmp_path):
    film = reference(bundle, "regions")
    bundle.engines["regions"]._outputs = {"probabilities": np.full((8, SIZE, SIZE), np.nan, np.float32)}
    report = gate(bundle, tmp_path, "regions", film)
    assert not report.passed
    assert report.sentences == (
        "the engine failed on film-0.npz: output probabilities holds numbers that are not finite",
    )


def test_nothing_to_compare_with_is_no_pass(bundle, tmp_path):
    with pytest.raises(BundleError, match="no parity films"):
        gate(bundle, tmp_path, "regions")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"cam": None}, "lacks densenet.cam"),
        ({"input": None}, "lacks densenet.input"),
        ({"probabilities": np.zeros(3, np.float32)}, r"probabilities of shape \(3,\), the network gives \(2,\)"),
        ({"cam": np.zeros((2, 4, 4), np.float32)}, r"cam of shape \(2, 4, 4\)"),
    ],
)
def test_films_that_do_not_fit_are_the_bundles_fault(bundle, tmp_path, change, words):
    film = {key: value for key, value in {**reference(bundle, "densenet"), **change}.items() if value is not None}
    with pytest.raises(BundleError, match=words):
        gate(bundle, tmp_path, "densenet", film)


def test_unreadable_film_is_the_bundles_fault(bundle, tmp_path):
    (tmp_path / "film.npz").write_bytes(b"PK\x03\x04 not a zip")
    manifest = replace(bundle.manifest, parity_films=("film.npz",))
    with pytest.raises(BundleError, match=r"film\.npz cannot be read"):
        check_parity(bundle.engines["regions"], manifest.members[0], manifest, tmp_path)


@settings(max_examples=20, deadline=None)
@given(noise=st.floats(0.0, 0.2), seed=st.integers(0, 99))
def test_a_report_passes_exactly_when_it_has_nothing_to_say(tmp_path_factory, noise, seed):
    bundle = PassthroughBundle(size=32, findings=("pneumonia",), classifiers=("densenet",))
    image = np.zeros((1, 32, 32), np.float16)
    random = np.random.default_rng(seed)
    film = {"input": image}
    for name, value in bundle.engines["densenet"].run(image[np.newaxis].astype(np.float32)).items():
        film[name] = value[0] + random.uniform(-noise, noise, value[0].shape).astype(np.float32)
    report = gate(bundle, tmp_path_factory.mktemp("films"), "densenet", film)
    assert report.passed == (not report.sentences) == all(figure.passed for figure in report.figures)
