"""Findings: every number of the report against scikit-learn over hand-made scores."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from handmade_runs import FINDINGS, SLOPE, HandmadeRun, column_picture, make_samples, pixels_of
from hypothesis import given
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics import f1_score, recall_score, roc_auc_score, roc_curve

from trainer.data.store import Samples
from trainer.errors import RunError
from trainer.evaluation import evaluate_run, evaluate_runs
from trainer.evaluation.classification import calibration
from trainer.evaluation.subjects import member_names
from worker.bootstrap import draw


def films(count: int, seed: int, noise: float = 0.25) -> Samples:
    """Films whose columns are greyer where a finding is there; some findings are not known."""
    rng = np.random.default_rng([seed, count])
    labels = (np.random.default_rng(count).random((count, 3)) < 0.4).astype(float)
    labels[np.random.default_rng(count + 1).random(labels.shape) < 0.1] = np.nan
    grey = np.clip(0.4 + 0.2 * np.nan_to_num(labels) + rng.normal(0, noise, labels.shape), 0.02, 0.98)
    return make_samples([column_picture(row) for row in grey], targets=labels)


def scores_of(samples: Samples) -> np.ndarray:
    """The probabilities that the column reader gives."""
    grey = np.asarray(samples.pictures[:, 0, 0], np.float64)
    # Columns of 64 pixels in three parts overlap by one, as adaptive pooling does it.
    bounds = [(k * 64 // 3, -(-(k + 1) * 64 // 3)) for k in range(3)]
    means = np.stack([grey[:, low:high].mean(axis=1) for low, high in bounds], axis=1)
    return 1 / (1 + np.exp(-SLOPE * (means - 0.5)))


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture(scope="module")
def run(make_run) -> HandmadeRun:
    return make_run("classification", test=films(60, 1), validation=films(50, 2))


@pytest.fixture(scope="module")
def told() -> list[tuple[str, int, int]]:
    """What the progress of the evaluation below was told."""
    return []


@pytest.fixture(scope="module")
def measured(run, told, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, Path]:
    """What the run's evaluation returned, and where it wrote."""
    out = tmp_path_factory.mktemp("findings")
    return evaluate_run(run, "test", out, replicates=150, progress=lambda *news: told.append(news)), out


class TestNumbers:
    def test_probabilities_are_the_networks(self, run, measured) -> None:
        _, out = measured
        rows = rows_of(out / "films.csv")
        found = [[float(row[finding]) for finding in FINDINGS] for row in rows]
        np.testing.assert_allclose(found, scores_of(run.samples("test")), atol=2e-3)
        labels = [[float(row[f"{finding}_label"] or "nan") for finding in FINDINGS] for row in rows]
        np.testing.assert_array_equal(labels, run.samples("test").targets)

    def test_every_finding_against_scikit_learn(self, run, measured) -> None:
        summary, out = measured
        scores, labels = self.read(out)
        for k, finding in enumerate(FINDINGS):
            known = ~np.isnan(labels[:, k])
            truth, values = labels[known, k], scores[known, k]
            result = summary["findings"][finding]
            called = values >= result["threshold"]
            assert (result["positive"], result["negative"]) == ((truth == 1).sum(), (truth == 0).sum())
            assert result["auroc"]["value"] == pytest.approx(roc_auc_score(truth, values))
            assert result["sensitivity"]["value"] == pytest.approx(recall_score(truth, called))
            assert result["specificity"]["value"] == pytest.approx(recall_score(truth, called, pos_label=0))
            assert result["f1"]["value"] == pytest.approx(f1_score(truth, called))
        figures, findings = summary["figures"], summary["findings"].values()
        for name in ("auroc", "sensitivity", "specificity", "f1"):
            mean = np.mean([each[name]["value"] for each in findings])
            assert figures[f"mean_{name}"]["value"] == pytest.approx(mean)

    def test_macro_interval_resamples_films_for_all_findings_at_once(self, run, measured) -> None:
        summary, out = measured
        scores, labels = self.read(out)
        means = []
        for row in draw(len(labels), 150):
            areas = []
            for k in range(3):
                known = row[~np.isnan(labels[row, k])]
                areas.append(roc_auc_score(labels[known, k], scores[known, k]))
            means.append(np.mean(areas))
        interval = summary["figures"]["mean_auroc"]
        assert [interval["low"], interval["high"]] == pytest.approx(np.percentile(means, (2.5, 97.5)).tolist())

    def test_thresholds_come_from_the_validation_part(self, run, measured) -> None:
        summary, _ = measured
        validation = run.samples("validation")
        scores, labels = scores_of(validation), validation.targets
        for k, finding in enumerate(FINDINGS):
            known = ~np.isnan(labels[:, k])
            false, true, thresholds = roc_curve(labels[known, k], scores[known, k], drop_intermediate=False)
            best = thresholds[np.argmax(np.round(true - false, 9))]
            assert summary["findings"][finding]["threshold"] == pytest.approx(best, abs=2e-3)
        assert "50 films" in summary["thresholds_chosen_on"]

    def test_the_validation_part_itself_is_said_to_flatter(self, run, tmp_path: Path) -> None:
        summary = evaluate_run(run, "validation", tmp_path, replicates=20)
        assert "flatter" in summary["thresholds_chosen_on"]
        assert summary["figures"]["mean_auroc"] == summary["figures"]["mean_auroc_validation"]

    def test_a_finding_nobody_knows_and_a_class_that_is_absent(self, run, tmp_path: Path) -> None:
        samples = run.samples("test")
        targets = samples.targets.copy()
        targets[:, 0], targets[:, 1] = np.nan, 0.0
        lacking = replace(run, parts={**run.parts, "test": replace(samples, targets=targets)})
        summary = evaluate_run(lacking, "test", tmp_path, replicates=20)
        assert set(summary["findings"]) == {"bronchitis", "no_finding"}
        assert summary["findings"]["bronchitis"]["auroc"]["value"] is None
        assert summary["figures"]["mean_auroc"]["value"] == summary["findings"]["no_finding"]["auroc"]["value"]
        report = (tmp_path / "report.md").read_text("utf-8")
        assert "No film says anything about: Pneumonia." in report
        assert "| Bronchitis | 0 of 60 |" in report

    def read(self, folder: Path) -> tuple[np.ndarray, np.ndarray]:
        rows = rows_of(folder / "films.csv")
        scores = np.array([[float(row[finding]) for finding in FINDINGS] for row in rows])
        labels = np.array([[float(row[f"{finding}_label"] or "nan") for finding in FINDINGS] for row in rows])
        return scores, labels


class TestCalibration:
    def test_bins_are_scikit_learns(self) -> None:
        rng = np.random.default_rng(3)
        scores = rng.random(300) ** 3
        labels = (rng.random(300) < scores**2).astype(float)
        curve = calibration(labels, scores)
        observed, probability = calibration_curve(labels, scores, n_bins=10, strategy="quantile")
        np.testing.assert_array_equal(curve.films, np.full(10, 30))
        np.testing.assert_allclose(curve.observed, observed)
        np.testing.assert_allclose(curve.probability, probability)
        assert curve.error == pytest.approx(np.mean(np.abs(observed - probability)))

    def test_an_honest_network_has_no_error(self) -> None:
        scores = np.repeat([0.25, 0.75], 40)
        labels = np.r_[np.arange(40) % 4 == 0, np.arange(40) % 4 != 0].astype(float)
        assert calibration(labels, scores).error == pytest.approx(0)
        assert calibration(labels, 1 - scores).error == pytest.approx(0.5)

    def test_a_sure_network_that_is_right_four_times_in_five(self) -> None:
        sure = np.linspace(0.98, 1.0, 50)
        right = (np.arange(50) % 5 != 0).astype(float)
        curve = calibration(np.r_[right, 1 - right], np.r_[sure, 1 - sure])
        assert curve.error == pytest.approx(0.19, abs=1e-9)

    def test_equal_probabilities_stay_in_one_bin(self) -> None:
        scores = np.r_[np.zeros(70), np.linspace(0.5, 0.9, 30)]
        curve = calibration(np.zeros(100), scores)
        assert curve.films[0] == 70
        assert curve.films.sum() == 100
        shuffled = np.random.default_rng(0).permutation(100)
        assert calibration(np.zeros(100), scores[shuffled]).error == pytest.approx(curve.error)

    def test_without_films_there_is_no_error(self) -> None:
        assert np.isnan(calibration(np.array([np.nan]), np.array([0.3])).error)

    @given(st.lists(st.tuples(st.booleans(), st.floats(0, 1)), min_size=1, max_size=60))
    def test_error_lies_between_the_whole_and_one(self, pairs: list[tuple[bool, float]]) -> None:
        labels, scores = (np.array(column, float) for column in zip(*pairs, strict=True))
        curve = calibration(labels, scores)
        assert curve.films.sum() == len(pairs)
        assert abs(labels.mean() - scores.mean()) - 1e-9 <= curve.error <= 1 + 1e-9


class TestEnsemble:
    @pytest.fixture
    def runs(self, run) -> list[HandmadeRun]:
        return [run, replace(run, parts={"test": films(60, 7), "validation": films(50, 8)})]

    def test_averages_probabilities(self, runs, tmp_path: Path) -> None:
        summary = evaluate_runs(runs, "test", tmp_path, replicates=100)
        rows = rows_of(tmp_path / "films.csv")
        found = [[float(row[finding]) for finding in FINDINGS] for row in rows]
        expected = np.mean([scores_of(each.samples("test")) for each in runs], axis=0)
        np.testing.assert_allclose(found, expected, atol=2e-3)
        assert summary["networks"] == ["densenet121-1", "densenet121-2"]

    def test_each_member_stands_against_it(self, runs, tmp_path: Path) -> None:
        summary = evaluate_runs(runs, "test", tmp_path, replicates=100)
        alone = [evaluate_run(each, "test", tmp_path / str(k), replicates=100) for k, each in enumerate(runs)]
        for member, single in zip(summary["members"].values(), alone, strict=True):
            assert member["mean_auroc"] == single["figures"]["mean_auroc"]
            assert member["mean_auroc_validation"] == single["figures"]["mean_auroc_validation"]
            lead = summary["figures"]["mean_auroc"]["value"] - member["mean_auroc"]["value"]
            assert member["ensemble_above"]["value"] == pytest.approx(lead)
            assert member["ensemble_above"]["low"] < lead < member["ensemble_above"]["high"]
        members = rows_of(tmp_path / "members.csv")
        assert [row["finding"] for row in members] == [*FINDINGS, "mean"] * 2
        assert not (tmp_path / "0" / "members.csv").exists()

    def test_of_runs_on_other_films_is_refused(self, runs, tmp_path: Path) -> None:
        runs[1].parts["test"] = films(59, 7)
        with pytest.raises(RunError, match="split differently"):
            evaluate_runs(runs, "test", tmp_path)

    def test_of_runs_of_other_tasks_is_refused(self, make_run, run, tmp_path: Path) -> None:
        with pytest.raises(RunError, match="different things"):
            evaluate_runs([run, make_run("segmentation")], "test", tmp_path)

    def test_members_have_names_of_their_own(self) -> None:
        assert member_names(["a", "b", "a"]) == ["a-1", "b", "a-2"]


class TestReport:
    def test_pictures_show_something(self, run, measured) -> None:
        summary, out = measured
        assert {"roc.png", "calibration.png", "cam.png"} <= set(summary["files"])
        for name in ("roc.png", "calibration.png", "cam.png"):
            picture = pixels_of(out / name)
            assert min(picture.shape[:2]) > 200
            assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 50
        # Heat makes the lower row coloured; the films above are grey.
        above, below = np.array_split(pixels_of(out / "cam.png").astype(int), 2)
        assert np.ptp(below, axis=2).max() > 60
        assert np.ptp(above, axis=2).max() < 10

    def test_names_no_film(self, measured) -> None:
        _, out = measured
        assert "Doe^Jane" in (out / "films.csv").read_text("utf-8")
        for name in ("report.md", "summary.json", "findings.csv"):
            assert "Doe" not in (out / name).read_text("utf-8")
        assert "Research use, not a medical device." in (out / "report.md").read_text("utf-8")

    def test_the_papers_figures_stand_beside_ours_and_say_so(self, make_run, tmp_path: Path) -> None:
        parts = {"test": films(60, 1), "validation": films(50, 2)}
        evaluate_run(
            make_run("classification", {"paper": "pediatric_classifier"}, **parts), "test", tmp_path, replicates=20
        )
        report = (tmp_path / "report.md").read_text("utf-8")
        pneumonia = next(line for line in report.splitlines() if line.startswith("| Pneumonia"))
        assert pneumonia.endswith("| 0.802 | 0.682 | 0.809 | 0.422 |")
        network = next(line for line in report.splitlines() if line.startswith("| densenet121"))
        assert network.endswith("| 0.715 (0.693-0.737) | 0.696 (0.675-0.716) |")
        assert report.count("cannot be compared") == 2

    def test_progress_is_told(self, measured, told) -> None:
        assert ("test films", 60, 60) in told
        assert ("validation films", 50, 50) in told
