"""The candidate beside the champion, with evaluations written down by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from schema.bundle import BundleRegion, FindingThreshold, Manifest, Member
from schema.regions import HOLSTE_REGIONS
from trainer.data.records import Dataset, FilmRecord
from trainer.rebuild import comparison
from trainer.rebuild.comparison import Figure, Side, compare
from trainer.rebuild.folder import RebuildFolder

STEPS = ({"step": "min_max"}, {"step": "resize", "height": 32, "width": 32})


def figure(value: float | None, low: float | None = None, high: float | None = None) -> dict[str, Any]:
    return {"value": value, "low": low, "high": high}


def side(name: str, regions: int = 3, findings: tuple[str, ...] = ("pneumonia", "no_finding"), **changes: Any) -> Side:
    manifest: dict[str, Any] = {
        "name": name, "version": "1", "created": "", "description": "", "temperature": 1.0, "parity_films": (),
        "regions": tuple(BundleRegion(r.value, r.name, r.title, r.colour, "exact") for r in HOLSTE_REGIONS[:regions]),
        "findings": tuple(FindingThreshold(finding, 0.5) for finding in findings),
        "members": (
            Member("masks", "segmentation", "m.onnx", 1, 32, 32, STEPS, "holste_unet"),
            *([Member("finder", "classification", "f.onnx", 1, 32, 32, STEPS, "small_classifier")] if findings else []),
        ),
        "metrics": {}, "recipe": {}, "data_digest": "", "files": {},
    }  # fmt: skip
    return Side(Path(name), Manifest(**{**manifest, **changes}))


def film(name: str, *, truth: bool = True, **findings: bool | None) -> FilmRecord:
    return FilmRecord(name, None, None, name, findings, part="test", truth_kind="phantom" if truth else "", seed=1)


FILMS = Dataset("films", (film("a", pneumonia=True, bronchitis=True), film("b", pneumonia=False)), Path(), {})


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Compares; ``judge.seen`` holds what each bundle was given."""

    class Judge:
        seen: dict[str, Dataset] = {}
        results: dict[str, dict[str, Any]] = {}

        def __call__(self, candidate: Side, champion: Side, films: Dataset = FILMS) -> dict[str, Any]:
            return compare(candidate, champion, films, RebuildFolder(tmp_path), replicates=1, progress=lambda *_: None)

    def evaluate(directory: Path, dataset: Dataset, part: str, out: Path, **_: Any) -> dict[str, Any]:
        assert part == "test" and all(record.part == "test" for record in dataset.records)
        judge.seen[directory.name] = dataset
        return judge.results[directory.name]

    judge = Judge()
    judge.seen, judge.results = {}, {}
    monkeypatch.setattr(comparison, "evaluate_bundle", evaluate)
    return judge


def masks(*dice: float, scored: tuple[bool, ...] = (True, True, True)) -> dict[str, Any]:
    regions = {
        region.name: {"scored": told, "dice": figure(value, value - 0.1, value + 0.1)}
        for region, value, told in zip(HOLSTE_REGIONS, dice, scored, strict=False)
    }
    return {"films": 2, "figures": {"mean_dice": figure(sum(dice) / 3, 0.5, 0.7)}, "regions": regions}


def findings(mean: float, **aurocs: float | None) -> dict[str, Any]:
    each = {name: {"auroc": figure(value, 0.6, 0.8)} for name, value in aurocs.items()}
    return {"films": 2, "figures": {"mean_auroc": figure(mean, 0.7, 0.9)}, "findings": each}


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ((0.5, 0.7, 0.6, 0.8), "below"),
        ((0.6, 0.7, 0.6, 0.8), "within"),
        ((0.8, 0.7, 0.6, 0.8), "within"),
        ((0.9, 0.7, 0.6, 0.8), "above"),
        ((None, 0.7, 0.6, 0.8), "unknown"),
        ((0.9, None, None, None), "unknown"),
        ((0.5, 0.7, None, None), "below"),
        ((0.7, 0.7, None, None), "within"),
    ],
)
def test_a_verdict_is_about_the_champions_interval(values: Any, verdict: str) -> None:
    assert Figure("Dice", "segmentation", *values).verdict == verdict


def test_figures_stand_side_by_side(judge: Any) -> None:
    judge.results = {
        "new": {"masks": masks(0.9, 0.5, 0.4), "findings": findings(0.75, pneumonia=0.7, no_finding=0.5)},
        "old": {"masks": masks(0.9, 0.7, 0.2), "findings": findings(0.8, pneumonia=0.7, no_finding=0.7)},
    }
    result = judge(side("new"), side("old"))
    assert {each["name"]: each["verdict"] for each in result["figures"]} == {
        "mean Dice": "within", "Dice of background": "within", "Dice of left_lung": "below",
        "Dice of right_lung": "above", "mean AUROC": "within", "AUROC of pneumonia": "within",
        "AUROC of no_finding": "below",
    }  # fmt: skip
    assert result["below"] == ["Dice of left_lung", "AUROC of no_finding"]
    assert [each["task"] for each in result["figures"]] == ["segmentation"] * 4 + ["classification"] * 3
    assert (result["candidate"], result["champion"]) == ("new:1", "old:1")
    assert result["films"] == {"masks": 2, "findings": 2}


def test_both_see_the_same_films_and_findings(judge: Any) -> None:
    judge.results = {"new": (both := {"masks": masks(1, 1, 1), "findings": findings(0.7, pneumonia=0.7)}), "old": both}
    judge(side("new", findings=("pneumonia", "bronchitis")), side("old"))
    assert judge.seen["new"] == judge.seen["old"]
    assert [dict(record.findings) for record in judge.seen["new"].records] == [
        {"pneumonia": True}, {"pneumonia": False},
    ]  # fmt: skip


def test_a_region_that_one_of_them_does_not_score_is_not_compared(judge: Any) -> None:
    judge.results = {
        "new": {"masks": masks(0.9, 0.9, 0.9), "findings": findings(0.7)},
        "old": {"masks": masks(0.9, 0.9, 0.9, scored=(True, True, False)), "findings": findings(0.7)},
    }
    names = [each["name"] for each in judge(side("new"), side("old"))["figures"]]
    assert names == ["Dice of background", "Dice of left_lung", "mean AUROC"]


@pytest.mark.parametrize(
    ("candidate", "films", "said"),
    [
        (side("new", metrics={"segmentation": {"copied_from": "old:1"}}), FILMS, "the champion's own segmentation"),
        (side("new", regions=2), FILMS, "draws background, left_lung, the champion background, left_lung, right_lung"),
        (side("new"), Dataset("f", (film("a", truth=False, pneumonia=True),), Path(), {}), "nothing is known"),
    ],
)
def test_masks_that_cannot_be_compared(judge: Any, candidate: Side, films: Dataset, said: str) -> None:
    judge.results = {"new": (both := {"masks": None, "findings": findings(0.7, pneumonia=0.7)}), "old": both}
    result = judge(candidate, side("old"), films)
    assert any(said in remark for remark in result["remarks"])
    assert {each["name"] for each in result["figures"]} == {"mean AUROC", "AUROC of pneumonia"}
    assert not any(record.truth_kind for record in judge.seen["old"].records)


def test_findings_that_cannot_be_compared(judge: Any) -> None:
    judge.results = {"new": (both := {"masks": masks(1, 1, 1), "findings": None}), "old": both}
    result = judge(side("new", findings=()), side("old"))
    assert "The findings were not compared: the two bundles share no finding." in result["remarks"]
    assert "The candidate says nothing of no_finding, pneumonia, which the champion does." in result["remarks"]
    assert not any(record.findings for record in judge.seen["new"].records)


def test_nothing_to_compare_needs_no_evaluation(judge: Any) -> None:
    result = judge(side("new", regions=2, findings=()), side("old"))
    assert (result["figures"], result["below"], judge.seen) == ([], [], {})


def test_a_champion_that_may_know_the_films_is_named(judge: Any) -> None:
    judge.results = {"new": (both := {"masks": masks(1, 1, 1), "findings": findings(0.7, pneumonia=0.7)}), "old": both}

    def learned(held_out: bool) -> Side:
        recipe = {
            "name": "r", "description": "", "network": {"name": "n"}, "preprocess": list(STEPS),
            "loss": {"name": "l"}, "training": {"epochs": 1, "batch_size": 1},
        }  # fmt: skip
        data = {"split": {"held_out": held_out}, "findings": ["pneumonia"], "regions": ["background", "left_lung"]}
        masks = {**recipe, "task": "segmentation", "data": {**data, "findings": []}}
        finder = {**recipe, "task": "classification", "data": {**data, "regions": []}}
        return side("old", recipe={"masks": masks, "finder": finder})

    assert judge(side("new"), learned(held_out=True))["remarks"] == []
    remarks = judge(side("new"), learned(held_out=False))["remarks"]
    assert [remark.split(" may ")[0] for remark in remarks] == ["The champion's masks", "The champion's findings"]
