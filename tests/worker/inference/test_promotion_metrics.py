"""By which comparison a bundle is judged, and what speaks against it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert, update
from stored_films import digest

from schema import tables
from schema.database import Database
from schema.types import database_now
from worker.errors import CarinaError
from worker.inference.promotion import promote
from worker.inference.promotion_metrics import Judgement, judge_metrics
from worker.inference.registry import find_bundle, record_engine
from worker.settings import Settings

SAME_FILMS = "by the figures that both bring along, of the same held-out films (5a5e)"


def figure(value: float | None, low: float | None = None, high: float | None = None) -> dict[str, Any]:
    return {"value": value, "low": low, "high": high, "replicates": 100}


def metrics(*, films: str = "5a5e", lung: float = 0.95, auroc: float = 0.9) -> dict[str, Any]:
    return {
        "segmentation": {
            "films_digest": films,
            "figures": {"mean_dice": figure(0.9, 0.88, 0.92), "carina_distance": figure(3.0, 2.0, 4.0)},
            "regions": {
                "left_lung": {"truth": "annotated", "scored": True, "dice": figure(lung, 0.94, 0.96)},
                "spine": {"truth": "derived", "scored": False, "dice": figure(0.5, 0.4, 0.6)},
            },
        },
        "classification": {
            "films_digest": films,
            "figures": {"mean_auroc": figure(0.9, 0.88, 0.92)},
            "findings": {"pneumonia": {"auroc": figure(auroc, 0.85, 0.93), "sensitivity": figure(0.8, 0.7, 0.9)}},
        },
    }


def compared(name: str, task: str, candidate: float | None, verdict: str, **changes: Any) -> dict[str, Any]:
    """A figure as ``carina rebuild`` stores it."""
    made = {"name": name, "task": task, "candidate": candidate, "champion": 0.95, "low": 0.94, "high": 0.96}
    return made | {"verdict": verdict} | changes


class Registry:
    """A database with a bundle in service, and one that may follow it."""

    def __init__(self, database: Database, home: Path) -> None:
        self.database, self.settings = database, Settings(home=home, disk_reserve=0)

    def add(self, version: str, figures: dict[str, Any], **aliases: str) -> int:
        row = {"name": "x", "version": version, "sha256": digest(version), "manifest": {"metrics": figures}}
        with self.database.write() as connection:
            number = connection.execute(insert(tables.bundle).values(**row)).inserted_primary_key[0]
            for alias in aliases:
                connection.execute(insert(tables.bundle_alias).values(alias=alias, bundle_id=number))
        return int(number)

    def pair(self, candidate: dict[str, Any], serving: dict[str, Any]) -> None:
        """``x:1`` serves, ``x:2`` is to follow."""
        self.serving, self.candidate = self.add("1", serving, champion=""), self.add("2", candidate)

    def rebuilt(self, *figures: dict[str, Any], champion: int = 0, remarks: tuple[str, ...] = ()) -> None:
        """``x:2`` came from a rebuild that compared it with ``champion``, by default the bundle that serves."""
        found = {"figures": figures, "films": {"masks": 40, "findings": 30}, "remarks": remarks}
        row = {
            "state": "finished", "stage": "report", "recipe": "r", "request": {}, "folder": "",
            "champion_id": champion or self.serving, "bundle_id": self.candidate, "results": {"comparison": found},
            "started_at": database_now(), "finished_at": database_now(),
        }  # fmt: skip
        with self.database.write() as connection:
            connection.execute(insert(tables.rebuild).values(**row))

    def judge(self) -> Judgement:
        return judge_metrics(self.database, *(find_bundle(self.database, self.settings, key) for key in ("x:2", "x:1")))


@pytest.fixture
def registry(database: Database, tmp_path: Path) -> Registry:
    return Registry(database, tmp_path)


class TestManifests:
    def test_within_the_interval_is_good_enough(self, registry: Registry) -> None:
        registry.pair(metrics(lung=0.94, auroc=0.85), metrics())
        assert registry.judge() == Judgement(
            remarks=(
                f"The masks were compared with those of x:1 {SAME_FILMS}: none of 2 figures below its interval.",
                f"The findings were compared with those of x:1 {SAME_FILMS}: none of 2 figures below its interval.",
            )
        )

    def test_below_it_is_a_sentence_for_each_figure(self, registry: Registry) -> None:
        registry.pair(metrics(lung=0.93, auroc=0.8), metrics())
        judgement = registry.judge()
        assert judgement.below == (
            "dice of left_lung is 0.930 on the same held-out films, below the interval of x:1 (0.940-0.960).",
            "auroc of pneumonia is 0.800 on the same held-out films, below the interval of x:1 (0.850-0.930).",
        )
        assert [remark.split(": ")[1] for remark in judgement.remarks] == ["1 of 2 figures below its interval."] * 2

    def test_figures_where_less_is_better_and_derived_regions_do_not_count(self, registry: Registry) -> None:
        worse = metrics()
        worse["segmentation"]["figures"]["carina_distance"] = figure(1.0, 0.5, 1.5)
        worse["segmentation"]["regions"]["spine"]["dice"] = figure(0.1, 0.0, 0.2)
        registry.pair(worse, metrics())
        assert registry.judge().below == ()

    @pytest.mark.parametrize("candidate", [metrics(films="others", lung=0.1), {}])
    def test_other_films_are_not_comparable_which_is_said(self, registry: Registry, candidate: dict[str, Any]) -> None:
        registry.pair(candidate, metrics())
        assert registry.judge() == Judgement(
            remarks=tuple(
                f"The {words} were not compared: those of x:1 were not measured on the same held-out films."
                for words in ("masks", "findings")
            )
        )

    @pytest.mark.parametrize("swapped", [False, True])
    def test_what_cannot_be_computed_refuses_nothing(self, registry: Registry, swapped: bool) -> None:
        gone = metrics()
        gone["classification"]["findings"]["pneumonia"]["auroc"] = figure(None)
        registry.pair(*((metrics(), gone) if swapped else (gone, metrics())))
        judgement = registry.judge()
        assert judgement.below == () and "none of 1 figures" in judgement.remarks[1]

    def test_a_bundle_without_figures_asks_for_none(self, registry: Registry) -> None:
        registry.pair(metrics(), {})
        assert registry.judge() == Judgement(
            remarks=(
                "x:1 brings along no figures of masks to compare with.",
                "x:1 brings along no figures of findings to compare with.",
            )
        )

    def test_the_same_networks_need_no_comparison(self, registry: Registry) -> None:
        registry.pair(metrics() | {"segmentation": {"copied_from": "x:1"}}, metrics())
        judgement = registry.judge()
        assert (judgement.below, judgement.remarks[0]) == ((), "The networks for masks are those of x:1.")


class TestRebuild:
    def test_its_comparison_counts_more_than_the_manifests(self, registry: Registry) -> None:
        registry.pair(metrics(lung=0.1), metrics())
        registry.rebuilt(
            compared("mean Dice", "segmentation", 0.95, "within"),
            compared("mean AUROC", "classification", 0.97, "above"),
            compared("AUROC of pneumonia", "classification", None, "unknown"),
            remarks=("The champion's masks may flatter it.",),
        )
        assert registry.judge() == Judgement(
            remarks=(
                "The masks were compared with those of x:1 by what both found on the 40 held-out films of rebuild 1: "
                "none of 1 figures below its interval.",
                "The findings were compared with those of x:1 by what both found on the 30 held-out films of rebuild "
                "1: none of 2 figures below its interval.",
                "Rebuild 1: The champion's masks may flatter it.",
            )
        )

    def test_what_lies_below_refuses_and_names_the_rebuild(self, registry: Registry) -> None:
        registry.pair({}, {})
        registry.rebuilt(
            compared("mean Dice", "segmentation", 0.9, "below"),
            compared("mean AUROC", "classification", 0.9, "below", low=None, high=None),
            remarks=("The champion's masks may flatter it.",),
        )
        description = {"backend": "b", "backend_version": "1", "device": "d", "precision": "fp32"}
        record_engine(registry.database, registry.candidate, description, {})
        with pytest.raises(CarinaError) as refusal:
            promote(registry.database, registry.settings, "x:2", actor="ann")
        said = str(refusal.value)
        assert (
            "mean Dice is 0.900 on the 40 held-out films of rebuild 1, below the interval of x:1 (0.940-0.960). "
            "mean AUROC is 0.900 on the 30 held-out films of rebuild 1, below that of x:1."
        ) in said
        assert "Rebuild 1: The champion's masks may flatter it." in said and "--force" in said
        assert len(promote(registry.database, registry.settings, "x:2", actor="ann", force=True).overridden) == 2

    def test_a_task_that_it_did_not_compare_is_judged_otherwise(self, registry: Registry) -> None:
        registry.pair(metrics(lung=0.1), metrics())
        registry.rebuilt(compared("mean AUROC", "classification", 0.95, "within"))
        (below,) = registry.judge().below
        assert below.startswith("dice of left_lung is 0.100 on the same held-out films")

    def test_a_comparison_with_another_bundle_says_nothing_about_this_one(self, registry: Registry) -> None:
        registry.pair({}, {})
        registry.rebuilt(
            compared("mean Dice", "segmentation", 0.1, "below"), champion=registry.add("0", {}), remarks=("Flattered.",)
        )
        judgement = registry.judge()
        assert judgement.below == () and "Flattered" not in str(judgement)
        assert judgement.remarks[0] == "Rebuild 1 compared it with x:0, which does not serve: that counts no more."

    def test_only_a_finished_one_counts(self, registry: Registry) -> None:
        registry.pair({}, {})
        registry.rebuilt(compared("mean Dice", "segmentation", 0.1, "below"))
        with registry.database.write() as connection:
            connection.execute(update(tables.rebuild).values(state="failed"))
        assert registry.judge().below == ()
