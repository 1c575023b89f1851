from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from schema.bundle import Manifest, read_manifest
from trainer.export.model_card import model_card


@pytest.fixture(scope="module")
def manifest(bundle: Path) -> Manifest:
    return read_manifest(bundle)


def test_the_card_in_the_bundle_is_the_manifests(bundle: Path, manifest: Manifest) -> None:
    assert (bundle / "model-card.md").read_text("utf-8") == model_card(manifest)


def test_says_what_everyone_must_know(manifest: Manifest) -> None:
    card = model_card(manifest)
    assert "Research use, not a medical device." in card
    assert "learned from tiny films" in card
    assert "| holste_unet | tiny films | 24 | 12 | 12 | 24 / 12 / 12 |" in card
    assert "no patient is in two parts" in card
    assert "Films from anywhere but tiny films" in card
    assert not re.search(r"\bnan\b", card.lower())
    assert re.search(r"\| Left lung \| annotated \| 0\.\d{3} \(0\.\d{3}-[01]\.\d{3}\)", card)
    assert re.search(r"\| Pneumonia \| 6 of 12 \|", card)


def test_names_what_was_not_measured(manifest: Manifest) -> None:
    limits = model_card(manifest).split("## Limits")[1]
    assert "From which probability on these findings are present: Bronchitis" in limits
    assert "Findings of which no measured film says anything: Bronchitis" in limits
    assert "Masks of children aged: 5 years and over" in limits


def test_derived_regions_are_named_and_have_no_accuracy(manifest: Manifest) -> None:
    regions = tuple(
        replace(
            region,
            origin="derived" if region.name in {"spine", "background"} else "annotated",
            note="a straight band" if region.name == "spine" else "",
        )
        for region in manifest.regions
    )
    masks = manifest.metrics["segmentation"]
    scored = {
        name: {**facts, "scored": name not in {"spine", "background"}} for name, facts in masks["regions"].items()
    }
    metrics = {**manifest.metrics, "segmentation": {**masks, "regions": scored}}
    card = model_card(replace(manifest, regions=regions, metrics=metrics))
    assert "How right these regions are: Background, Spine." in card
    assert re.search(r"^\| Spine \| derived \| a straight band \|$", card, re.MULTILINE)
    assert re.search(r"^\| Left lung \| annotated \| as its name says \|$", card, re.MULTILINE)
    assert not re.search(r"\| Spine \| derived \| \d", card)


def test_phantoms_are_no_patients(manifest: Manifest) -> None:
    runs = {
        name: {**facts, "data": {**facts["data"], "name": "phantoms"}}
        for name, facts in manifest.recipe["runs"].items()
    }
    card = model_card(replace(manifest, recipe={**manifest.recipe, "runs": runs}))
    assert "**Synthetic radiographs only**" in card
    assert "no evidence about patients" in card


def test_variants_are_judged(manifest: Manifest) -> None:
    gates = {variant: dict(each) for variant, each in manifest.metrics["variants"].items()}
    gates["fp16"]["holste_unet"] = {"passed": False, "sentences": ["Dice of carina is 0.5"]}
    section = model_card(replace(manifest, metrics={**manifest.metrics, "variants": gates})).split("### Variants")[1]
    assert "| fp16, half precision (TensorRT) | holste_unet | Dice of carina is 0.5 |" in section
    rows = [line for line in section.splitlines() if re.match(r"\| (int8|fp16|torch), ", line)]
    assert len(rows) == len(gates) * len(manifest.members) == 9
    assert "| fp16, half precision (TensorRT) | small_classifier-1 | passed |" in rows


def test_tells_how_far_probabilities_can_be_trusted(bundle: Path, manifest: Manifest) -> None:
    measured = manifest.metrics["classification"]
    for name, curve in measured["calibration"].items():
        assert sum(curve["films"]) == measured["findings"][name]["positive"] + measured["findings"][name]["negative"]
        error = measured["findings"][name]["calibration_error"]
        assert 0 <= error <= 1
        assert f"| {name.replace('_', ' ').capitalize()} | {error:.3f} |" in model_card(manifest)
    assert "](reliability.png)" in model_card(manifest)
    assert (bundle / "reliability.png").read_bytes().startswith(b"\x89PNG")
    assert "reliability.png" in manifest.files
    earlier = {key: value for key, value in measured.items() if key != "calibration"}
    assert "reliability" not in model_card(replace(manifest, metrics={**manifest.metrics, "classification": earlier}))
