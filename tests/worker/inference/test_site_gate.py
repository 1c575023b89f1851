"""8 bits on a site's own films: what is measured, and that nothing else approves them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from passthrough import PassthroughBundle
from tiny_bundle import SIZE, make_bundle, picture

from schema.bundle import read_manifest
from worker.inference.bundles import LoadedBundle, load_bundle
from worker.inference.cache import SIDECAR_NAME
from worker.inference.engines.base import EngineBuildError, Precision
from worker.inference.engines.openvino import OpenVinoBackend, OpenVinoEngine
from worker.inference.parity import Measure, ParityThresholds, SiteThresholds
from worker.inference.site_gate import agreement_of_order, check_site
from worker.inference.site_set import FOLDER, SiteFilms, _keep, preparation_of, site_films
from worker.metrics import auroc

STEPS = ({"step": "min_max"}, {"step": "resize", "height": SIZE, "width": SIZE})
NO_HURRY = replace(
    SiteThresholds(), films=4, speed=0.0, mean_dice=0.9, low_dice=0.8, region_mean_dice={}, region_low_dice={}
)


def order_by_hand(expected: np.ndarray, found: np.ndarray, separated: float) -> float:
    counts = []
    for i in range(len(expected)):
        for j in range(i):
            if abs(expected[i] - expected[j]) > separated:
                product = (expected[i] - expected[j]) * (found[i] - found[j])
                counts.append(1.0 if product > 0 else 0.5 if product == 0 else 0.0)
    return sum(counts) / len(counts) if counts else 1.0


grid = st.lists(st.integers(0, 20), min_size=2, max_size=12)


@given(grid, st.data(), st.sampled_from([0.0, 0.1]))
def test_agreement_of_order_is_that_of_a_count_by_hand(values: list[int], data: Any, separated: float) -> None:
    others = data.draw(st.lists(st.integers(0, 20), min_size=len(values), max_size=len(values)))
    expected, found = np.array(values) / 20, np.array(others) / 20
    assert agreement_of_order(expected, found, separated) == pytest.approx(order_by_hand(expected, found, separated))
    assert agreement_of_order(expected, expected, separated) == 1.0


@given(st.integers(0, 500))
def test_no_auroc_moves_further_than_the_order_does(seed: int) -> None:
    """Over all labels together: an AUROC is the share of (ill, well) pairs in order."""
    rng = np.random.default_rng(seed)
    expected = rng.permutation(12) / 12
    found = expected.copy()
    first, second = rng.choice(12, 2, replace=False)
    found[[first, second]] = found[[second, first]]
    changed = round((1 - agreement_of_order(expected, found, 0.0)) * 66)
    labels = rng.random(12) < 0.5
    if labels.all() or not labels.any():
        return
    pairs = labels.sum() * (~labels).sum()
    assert abs(auroc(labels, found) - auroc(labels, expected)) <= changed / pairs + 1e-12


class Engine:
    """Gives what it is told, film after film."""

    def __init__(self, precision: Precision, outputs: list[np.ndarray]) -> None:
        self.precision = precision
        self._outputs = outputs
        self._calls = 0

    def run(self, batch: np.ndarray) -> dict[str, np.ndarray]:
        return {"probabilities": self._outputs[int(batch.ravel()[0])][np.newaxis]}


def films(folder: Path, count: int) -> SiteFilms:
    class Numbered(SiteFilms):
        def pictures(self):
            return (np.full((1, 4, 4), number, np.float32) for number in range(count))

    return Numbered(tuple(folder / str(number) for number in range(count)), "digest")


def judge(
    tmp_path: Path, member: str, expected: list[np.ndarray], found: list[np.ndarray]
) -> dict[tuple[Measure, str], Any]:
    bundle = PassthroughBundle(size=4, findings=("pneumonia", "no_finding"), classifiers=("densenet",))
    (chosen,) = [each for each in bundle.manifest.members if each.name == member]
    figures = check_site(
        Engine(Precision.INT8, found),
        Engine(Precision.FP32, expected),
        Engine(Precision.BF16, expected),
        member=chosen,
        manifest=bundle.manifest,
        films=films(tmp_path, len(expected)),
        limits=SiteThresholds(),
    )
    return {(figure.measure, figure.subject): figure for figure in figures}


def test_findings_are_judged_by_rank_mean_and_worst_film(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    expected = rng.random((40, 2)).astype(np.float32)
    found = expected.copy()
    found[:, 0] = np.clip(found[:, 0] + 0.02, 0, 1)
    found[7, 1] += 0.3
    figures = judge(tmp_path, "densenet", list(expected), list(found))
    shift = figures[Measure.CALIBRATION, "pneumonia"]
    assert shift.value == pytest.approx(abs(found[:, 0].mean() - expected[:, 0].mean()), abs=1e-6) and not shift.passed
    assert figures[Measure.RANKING, "pneumonia"].passed
    order = figures[Measure.RANKING, "no_finding"]
    assert order.value == pytest.approx(order_by_hand(expected[:, 1], found[:, 1], 0.01))
    worst = figures[Measure.PROBABILITY, "no_finding"]
    assert worst.value == pytest.approx(0.3, abs=1e-6) and not worst.passed
    assert worst.film == "40 films of the site"


def test_masks_are_judged_by_mean_and_by_the_worse_films(tmp_path: Path) -> None:
    def probabilities(labels: np.ndarray) -> np.ndarray:
        return np.eye(8, dtype=np.float32)[labels].transpose(2, 0, 1)

    same = np.zeros((4, 4), int)
    same[:2] = 1
    half = np.zeros((4, 4), int)
    half[0] = 1
    expected = [probabilities(same)] * 10
    found = [probabilities(half if number < 3 else same) for number in range(10)]
    figures = judge(tmp_path, "regions", expected, found)
    dice = 2 * 4 / (8 + 4)
    mean = figures[Measure.MEAN_DICE, "left_lung"]
    assert mean.value == pytest.approx((7 + 3 * dice) / 10) and mean.limit == 0.98 and not mean.passed
    assert figures[Measure.LOW_DICE, "left_lung"].value == pytest.approx(dice)
    assert figures[Measure.MEAN_DICE, "carina"].passed and figures[Measure.MEAN_DICE, "carina"].limit == 0.9
    assert figures[Measure.SPEED, "bf16"].value > 0


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    if Precision.INT8 not in OpenVinoBackend().supported_precisions():
        pytest.skip("this processor has no 8-bit arithmetic")
    return make_bundle(tmp_path / "bundle", variants=("int8",), preprocess=STEPS, classifiers=1)


def site_set(home: Path, count: int, first: int = 100) -> None:
    """As if so many films had been added."""
    member = read_manifest(home.parent / "bundle").members[0]
    folder = home / FOLDER / preparation_of(member)
    folder.mkdir(parents=True, exist_ok=True)
    for seed in range(first, first + count):
        assert _keep(folder, picture(seed))
    assert len(site_films(home, member)) >= count


def load(bundle: Path, home: Path, site: SiteThresholds = NO_HURRY, **options: Any) -> LoadedBundle:
    thresholds = ParityThresholds(dice=0.8, region_dice={}, site=site, eight_bit_probability=0.02)
    return load_bundle(bundle, home=home, threads=1, thresholds=thresholds, **options)


def precisions(bundle: LoadedBundle) -> set[str]:
    return set(bundle.engine_description["members"].values())


def test_phantoms_alone_approve_no_8_bits(tiny: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    for count in (0, 3):
        site_set(home, count)
        bundle = load(tiny, home)
        assert not any(Precision(each).eight_bit for each in precisions(bundle))
        note = f"regions-0: int8 refused: the site set has {count} films for it, 4 are needed, and phantoms alone"
        assert any(each.startswith(note) for each in bundle.notes)
    assert not any("int8" in str(path) for path in home.rglob(SIDECAR_NAME))


def test_8_bits_that_agree_are_taken_and_their_figures_kept(tiny: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    site_set(home, 6)
    bundle = load(tiny, home)
    assert precisions(bundle) == {"int8"} and bundle.engine_description["precision"] == "int8"
    assert bundle.engine_description["how"].startswith("8-bit layers, ")
    assert "regions-0: int8 built, parity passed on 2 films and 6 of the site" in bundle.notes
    kept = {path.parent.name: json.loads(path.read_text("utf-8")) for path in home.rglob(f"*int8/*/{SIDECAR_NAME}")}
    report = kept["findings-0"]["parity"]
    assert report["passed"] and report["site_set"]["films"] == 6 and report == bundle.parity["findings-0"]
    measured = {figure["measure"] for figure in report["figures"]}
    assert {"ranking", "calibration", "probability_difference", "speed", "cam_difference"} <= measured
    assert {"mean_dice", "low_dice", "dice"} <= {figure["measure"] for figure in kept["regions-0"]["parity"]["figures"]}
    again = load(tiny, home)
    assert precisions(again) == {"int8"} and "regions-0: int8 from the cache" in again.notes[0]


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (replace(NO_HURRY, speed=1e6), "speed relative to"),
        (replace(NO_HURRY, probability=-1.0), "probability difference of pneumonia"),
        (replace(NO_HURRY, ranking=1.1), "share of film pairs ranked alike by pneumonia"),
        (replace(NO_HURRY, calibration=-1.0), "shift of the mean probability of pneumonia"),
    ],
)
def test_8_bits_that_miss_a_limit_fall_to_the_next_precision_with_figures(
    tiny: Path, tmp_path: Path, limits: SiteThresholds, words: str
) -> None:
    home = tmp_path / "home"
    site_set(home, 6)
    for _ in range(2):
        bundle = load(tiny, home, limits)
        assert not Precision(bundle.engine_description["members"]["findings-0"]).eight_bit
        assert any(each.startswith("findings-0: int8 refused: ") and words in each for each in bundle.notes)
    assert any("(tested 20" in each for each in bundle.notes)


def test_another_site_set_judges_again(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    site_set(home, 6)
    load(tiny, home).close()
    site_set(home, 1, first=200)
    bundle = load(tiny, home)
    assert any("int8 engine is refused, building again: it was judged on other films" in each for each in bundle.notes)
    assert bundle.parity["regions-0"]["site_set"]["films"] == 7 and precisions(bundle) == {"int8"}
    site_set(home, 1, first=300)
    refused = load(tiny, home, build="never")
    assert any("int8 refused: the cached engine is refused: it was judged on other" in each for each in refused.notes)
    assert not any(Precision(each).eight_bit for each in precisions(refused))


def test_a_worker_without_a_site_set_believes_the_builder_but_not_an_engine_nobody_judged(
    tiny: Path, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    site_set(home, 6)
    load(tiny, home).close()
    (home / FOLDER).rename(tmp_path / "elsewhere")
    assert precisions(load(tiny, home, build="never")) == {"int8"}
    for path in home.rglob(f"*-int8*/*/{SIDECAR_NAME}"):
        sidecar = json.loads(path.read_text("utf-8"))
        del sidecar["parity"]["site_set"]
        path.write_text(json.dumps(sidecar), "utf-8")
    load(tiny, home, precision="bf16").close()
    assert not any(Precision(each).eight_bit for each in precisions(load(tiny, home, build="never")))


def test_a_damaged_site_film_refuses_8_bits_only(tiny: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    site_set(home, 6)
    file = next((home / FOLDER).rglob("*.npz"))
    file.write_bytes(b"nonsense")
    bundle = load(tiny, home)
    assert not any(Precision(each).eight_bit for each in precisions(bundle))
    assert any(f"{file.name} cannot be read" in each for each in bundle.notes)


def test_a_network_without_8_bit_layers_is_not_called_8_bit(tmp_path: Path) -> None:
    if Precision.INT8 not in OpenVinoBackend().supported_precisions():
        pytest.skip("this processor has no 8-bit arithmetic")
    bundle = make_bundle(tmp_path / "bundle", variants=("int8",))
    backend = OpenVinoBackend()
    engine = backend.compile(bundle / "regions-0.int8.onnx", Precision.INT8, threads=1)
    assert isinstance(engine, OpenVinoEngine) and engine.has_eight_bit_layers()
    with pytest.raises(EngineBuildError, match=r"no layer of regions-0\.onnx in 8 bits"):
        backend.compile(bundle / "regions-0.onnx", Precision.INT8, threads=1)
