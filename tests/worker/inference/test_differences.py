from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from phantom_bundle import PHANTOM_BUNDLE
from tiny_bundle import make_bundle

from worker.inference.differences import Difference, differences


def manifest(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "bundle.json").read_text())


def test_a_bundle_is_not_different_from_itself() -> None:
    packaged = manifest(PHANTOM_BUNDLE)
    assert differences(packaged, copy.deepcopy(packaged)) == []
    # What always differs tells nothing.
    other = {**packaged, "version": "9", "created": "2027-01-01", "description": "another"}
    assert differences(packaged, other) == []


def test_each_thing_is_told_with_both_sides(tmp_path: Path) -> None:
    ours = manifest(make_bundle(tmp_path / "a", preprocess=({"step": "min_max"},)))
    theirs = copy.deepcopy(ours)
    theirs["regions"][1]["origin"] = "derived"
    theirs["regions"].pop()
    theirs["findings"][0]["threshold"] = 0.25
    theirs["members"][0]["preprocess"] = [{"step": "resize", "height": 32, "width": 32}]
    theirs["files"]["regions-0.onnx"] = "f" * 64
    theirs["temperature"] = 1.5
    theirs["metrics"] = {
        "classification": {"findings": {"pneumonia": {"auroc": {"value": 0.951, "low": 0.924, "high": 0.974}}}},
        "dice": {"left_lung": {"mean": 0.98, "interval": [0.97, 0.99]}},
    }
    theirs["recipe"] = {"regions-0": {"training": {"epochs": 20}}}
    theirs["data_digest"] = "a" * 64
    found = {(each.section, each.what): (each.first, each.second) for each in differences(ours, theirs)}
    assert found[("regions", "left_lung.origin")] == ("exact", "derived")
    assert found[("regions", "carina.title")] == ("Carina", None)
    assert found[("findings", "pneumonia.threshold")] == ("0.5", "0.25")
    assert found[("members", "regions-0.preprocess")] == ("min_max", "resize(height=32, width=32)")
    assert found[("members", "regions-0.digest")] == (ours["files"]["regions-0.onnx"][:16], "f" * 16)
    assert found[("temperature", "temperature")] == ("1", "1.5")
    assert found[("metrics", "classification.findings.pneumonia.auroc")] == (None, "0.951 (0.924-0.974)")
    assert found[("metrics", "dice.left_lung")] == (None, "0.98 (0.97-0.99)")
    assert found[("recipe", "regions-0.training.epochs")] == (None, "20")
    assert found[("data", "digest")] == ("", "a" * 16)
    assert all(what for _, what in found)
    assert {section for section, _ in found} == {
        "regions", "findings", "members", "temperature", "data", "metrics", "recipe",
    }  # fmt: skip


def test_the_other_way_round_the_sides_change_places(tmp_path: Path) -> None:
    ours, theirs = manifest(make_bundle(tmp_path / "a")), manifest(make_bundle(tmp_path / "b", classifiers=1))
    there = differences(ours, theirs)
    back = differences(theirs, ours)
    assert [Difference(each.section, each.what, each.second, each.first) for each in there] == back
    assert {each.what.split(".")[0] for each in there} == {"findings-1"}
    assert there[0].to_json()["section"] == "members"
