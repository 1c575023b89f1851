"""Train and package the first bundle on phantoms alone: ``python -m trainer.phantom_bundle --out DIR``.

No picture of a patient is used, so the bundle may be shipped with the software. What it
learns of real films it learns from the phantoms' variety.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from schema.bundle import BundleRegion, FindingThreshold, Manifest, Member, read_manifest, sha256_of, write_manifest
from schema.regions import HOLSTE_REGIONS, REGION_BY_NAME, Region
from trainer.model_card import phantom_model_card
from trainer.networks.holste_unet import HolsteUNet, parameter_count
from trainer.networks.small_classifier import SmallClassifier
from trainer.onnx_export import ClassificationOutputs, SegmentationOutputs, export_onnx, round_weights
from trainer.phantom_samples import FINDINGS, PREPROCESS, SIZE, Samples, draw_many, draw_samples
from trainer.phantom_training import (
    SHRINK,
    Course,
    GuidedClassifier,
    HalfSizeClassifier,
    HalfSizeSegmenter,
    Phase,
    as_tensor,
    classification_loss,
    segmentation_loss,
    train,
)
from worker.metrics import auroc, region_overlaps, youden_threshold

NAME, VERSION = "phantom", "1"
SEGMENTER, CLASSIFIER = "regions", "findings"
_VALIDATION_SEED, _TEST_SEED, _PARITY_SEED = 10**9 + 1, 10**9 + 2, 10**9 + 3
_PARITY_FILMS = 4
_REPLICATES = 1000

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what comes out of a run."""

    seed: int = 1
    steps: int = 1200
    base_width: int = 8
    phantoms: int = 6000
    held_out: int = 300

    def segmentation(self) -> Course:
        """At the size the network will see: see :class:`trainer.phantom_training.HalfSizeSegmenter`."""
        return Course("segmentation", (Phase(self.steps, 16, SHRINK),), 2e-3)

    def classification(self) -> Course:
        """On chests only: what is not a chest never reaches the findings."""
        return Course("classification", (Phase(self.steps // 2, 32, SHRINK),), 2e-3)


def build(out: Path, recipe: Recipe, *, workers: int = 2, resume: bool = False) -> Manifest:
    """Train both networks, choose thresholds, measure on held-out phantoms and write the bundle to ``out``."""
    torch.manual_seed(recipe.seed)
    out.mkdir(parents=True, exist_ok=True)
    state = out.with_name(f"{out.name}.training")
    state.mkdir(exist_ok=True)
    unet = HolsteUNet(regions=len(HOLSTE_REGIONS), base_width=recipe.base_width)
    classifier = GuidedClassifier(SmallClassifier(findings=len(FINDINGS)))
    samples = draw_many(recipe.seed * 10**6, recipe.phantoms, workers)
    print(f"drew {len(samples)} phantoms", flush=True)  # noqa: T201
    segmenter = train(
        unet, recipe.segmentation(), segmentation_loss, samples, state / "segmentation.pt",
        seed=recipe.seed, resume=resume,
    )  # fmt: skip
    finder = train(
        classifier, recipe.classification(), classification_loss, samples.chests(), state / "classification.pt",
        seed=recipe.seed, resume=resume,
    )  # fmt: skip
    return package(out, recipe, HalfSizeSegmenter(segmenter), HalfSizeClassifier(finder.network), data_digest(samples))


def package(out: Path, recipe: Recipe, segmenter: HalfSizeSegmenter, finder: nn.Module, digest: str) -> Manifest:
    """Write networks, parity films, figures, model card and manifest; returns the checked manifest."""
    for network in (segmenter, finder):
        round_weights(network.eval())
    validation = draw_samples(_VALIDATION_SEED, recipe.held_out).chests()
    settle_carina(segmenter, validation)
    members = (
        _member(SEGMENTER, "segmentation", segmenter, "holste_unet"),
        _member(CLASSIFIER, "classification", finder, "small_classifier"),
    )
    segmentation, classification = SegmentationOutputs(segmenter).eval(), ClassificationOutputs(finder).eval()
    export_onnx(segmentation, out / members[0].onnx, (1, SIZE, SIZE), ["probabilities"])
    export_onnx(classification, out / members[1].onnx, (1, SIZE, SIZE), ["probabilities", "cam"])

    logits, truth = _logits(finder, validation), validation.targets.astype(bool)
    temperature = best_temperature(logits, truth)
    scores = 1 / (1 + np.exp(-logits / temperature))
    thresholds = tuple(
        FindingThreshold(str(finding), round(float(youden_threshold(truth[:, i], scores[:, i])), 4))
        for i, finding in enumerate(FINDINGS)
    )
    metrics = evaluate(segmenter, finder, recipe)
    parity = _write_parity(out, segmentation, classification)
    card = out / "model-card.md"
    card.write_text(phantom_model_card(metrics, asdict(recipe), [m.parameters for m in members]), "utf-8")
    written = [*(m.onnx for m in members), *parity, card.name]
    write_manifest(
        out,
        Manifest(
            name=NAME,
            version=VERSION,
            created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            description="Eight chest regions and pneumonia, learned from synthetic radiographs only. Research use.",
            regions=tuple(BundleRegion(r.value, r.name, r.title, r.colour, "exact") for r in HOLSTE_REGIONS),
            findings=thresholds,
            members=members,
            temperature=temperature,
            parity_films=parity,
            metrics=metrics,
            recipe={"command": "python -m trainer.phantom_bundle", **asdict(recipe)},
            data_digest=digest,
            files={name: sha256_of(out / name) for name in written},
        ),
    )
    return read_manifest(out)


def _member(name: str, task: Any, network: nn.Module, kind: str) -> Member:
    return Member(name, task, f"{name}.onnx", 1, SIZE, SIZE, PREPROCESS, kind, parameter_count(network))


def _logits(finder: nn.Module, samples: Samples) -> Array:
    with torch.inference_mode():
        parts = [finder(part)[0] for part in as_tensor(samples).split(16)]
    return np.asarray(torch.cat(parts), np.float32)


def label_maps(segmenter: nn.Module, samples: Samples) -> npt.NDArray[np.uint8]:
    """Winner-takes-all label maps, uint8 (N, H, W)."""
    with torch.inference_mode():
        parts = [segmenter(part).argmax(dim=1).to(torch.uint8) for part in as_tensor(samples).split(8)]
    return np.asarray(torch.cat(parts), np.uint8)


def settle_carina(segmenter: HalfSizeSegmenter, samples: Samples) -> float:
    """Lower the carina's logit everywhere by the amount (0-3, returned) that gives it the best Dice on ``samples``.

    A loss weight that makes a rare class learned also makes it too large.
    """
    carina = REGION_BY_NAME[Region.CARINA].value
    truth = torch.from_numpy(samples.labels == carina)
    with torch.inference_mode():
        leads = []
        for part in as_tensor(samples).split(8):
            logits = segmenter(part)
            own = logits[:, carina].clone()
            logits[:, carina] = -torch.inf
            leads.append(own - logits.amax(dim=1))
        lead = torch.cat(leads)
        shifts = [step / 10 for step in range(31)]
        scores = []
        for shift in shifts:
            found = lead > shift
            common = (found & truth).sum(dim=(1, 2)) * 2.0
            scores.append(float((common / (found.sum(dim=(1, 2)) + truth.sum(dim=(1, 2))).clamp(min=1)).mean()))
        best = shifts[int(np.argmax(scores))]
        segmenter.network.head.bias[carina] -= best
    return best


def best_temperature(logits: Array, truth: npt.NDArray[np.bool_]) -> float:
    """The temperature (0.25-4) of least negative log-likelihood: Guo et al., "On calibration", section 4.2."""
    candidates = np.exp(np.linspace(np.log(0.25), np.log(4.0), 97))
    signed = np.where(truth, -logits, logits)[None] / candidates[:, None, None]
    return round(float(candidates[np.logaddexp(0.0, signed).mean(axis=(1, 2)).argmin()]), 4)


def evaluate(segmenter: nn.Module, finder: nn.Module, recipe: Recipe) -> dict[str, Any]:
    """Dice per region and AUROC per finding on phantoms never seen, with 95 % bootstrap intervals."""
    samples = draw_samples(_TEST_SEED, recipe.held_out)
    rng = np.random.Generator(np.random.PCG64(recipe.seed))
    chests = samples.chests()
    maps = label_maps(segmenter, chests)
    per_film = [region_overlaps(truth, found, HOLSTE_REGIONS) for truth, found in zip(chests.labels, maps, strict=True)]
    dice = {
        region.name: _interval(rng, np.asarray([film[region.name].dice for film in per_film]))
        for region in HOLSTE_REGIONS
    }
    strange = samples.strangers()
    lungs = [float(np.isin(found, (1, 2)).mean()) for found in label_maps(segmenter, strange)] if len(strange) else []
    logits, truth = _logits(finder, chests), chests.targets.astype(bool)
    areas = {}
    for i, finding in enumerate(FINDINGS):
        draws = rng.integers(0, len(truth), (_REPLICATES, len(truth)))
        values = np.asarray([auroc(truth[draw, i], logits[draw, i]) for draw in draws])
        areas[str(finding)] = {
            "auroc": round(float(auroc(truth[:, i], logits[:, i])), 4),
            "interval": [round(float(bound), 4) for bound in np.nanpercentile(values, (2.5, 97.5))],
        }
    return {
        "data": "held-out phantoms",
        "films": len(chests),
        "dice": dice,
        "not_chests": len(strange),
        "not_chests_with_lung_over_2_percent": int(np.sum(np.asarray(lungs) > 0.02)),
        "findings": areas,
    }


def _interval(rng: np.random.Generator, values: npt.NDArray[np.float64]) -> dict[str, Any]:
    """Mean of the films that have the region, with a 95 % bootstrap interval over films."""
    values = values[~np.isnan(values)]
    means = values[rng.integers(0, len(values), (_REPLICATES, len(values)))].mean(axis=1)
    bounds = np.percentile(means, (2.5, 97.5))
    return {"mean": round(float(values.mean()), 4), "interval": [round(float(bound), 4) for bound in bounds]}


def _write_parity(out: Path, segmentation: nn.Module, classification: nn.Module) -> tuple[str, ...]:
    """Parity films: half-precision inputs, and what the networks give for exactly these."""
    folder = out / "parity"
    folder.mkdir(exist_ok=True)
    samples = draw_samples(_PARITY_SEED, 2 * _PARITY_FILMS, (0.2, 0.6)).chests()
    inputs = as_tensor(samples)[:_PARITY_FILMS].half()
    with torch.inference_mode():
        regions = segmentation(inputs.float())
        findings, maps = classification(inputs.float())
    for index, image in enumerate(inputs.numpy()):
        np.savez_compressed(
            folder / f"{index}.npz",
            **{
                f"{SEGMENTER}.input": image,
                f"{SEGMENTER}.probabilities": regions[index].half().numpy(),
                f"{CLASSIFIER}.input": image,
                f"{CLASSIFIER}.probabilities": findings[index].numpy(),
                f"{CLASSIFIER}.cam": maps[index].numpy(),
            },
        )
    return tuple(f"parity/{index}.npz" for index in range(len(inputs)))


def data_digest(samples: Samples) -> str:
    """SHA-256 over the training pictures and their truth."""
    digest = hashlib.sha256()
    for part in (samples.pictures, samples.labels, samples.opacities, samples.targets):
        digest.update(part.tobytes())
    return digest.hexdigest()


def main(arguments: list[str] | None = None) -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(prog="python -m trainer.phantom_bundle", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the bundle's directory")
    parser.add_argument("--steps", type=int, default=Recipe.steps, help="batches for the segmentation network")
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    parser.add_argument("--base-width", type=int, default=Recipe.base_width, help="filters of the U-Net's first depth")
    parser.add_argument("--held-out", type=int, default=Recipe.held_out, help="phantoms to choose and to measure on")
    parser.add_argument("--phantoms", type=int, default=Recipe.phantoms, help="phantoms to train on")
    parser.add_argument("--workers", type=int, default=2, help="processes that draw phantoms")
    parser.add_argument("--threads", type=int, default=0, help="threads that train; as many as there are cores when 0")
    parser.add_argument("--resume", action="store_true", help="go on from DIR.training")
    chosen = parser.parse_args(arguments)
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    recipe = Recipe(chosen.seed, chosen.steps, chosen.base_width, chosen.phantoms, chosen.held_out)
    manifest = build(chosen.out, recipe, workers=chosen.workers, resume=chosen.resume)
    print(json.dumps(manifest.metrics, indent=2))  # noqa: T201


if __name__ == "__main__":
    main()
