"""The model card: what a bundle's manifest knows, said in words.

Every sentence follows from a fact in the manifest; what has no fact is listed as not measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from schema.bundle import Manifest
from schema.findings import title
from trainer.data.description import PHANTOMS
from trainer.evaluation.mask_members import ENSEMBLE_ABOVE, MEAN_DICE, MEAN_JACCARD
from trainer.evaluation.tables import NOTHING, RESEARCH_USE, markdown, number
from trainer.export.measured import RELIABILITY
from trainer.export.operating_point import NO_THRESHOLD

_AGE_GROUPS = {"age_0_4": "0-4 years", "age_5_plus": "5 years and over", "age_unknown": "age not known"}
_FIGURES = {
    "mean_dice": "mean Dice over the scored regions, background included",
    "lung_dice": "mean Dice of the two lungs",
    "mean_dice_cleaned": "mean Dice after post-processing",
    "accuracy": "pixel accuracy",
    "carina_distance": "distance of the carina's centroids, pixels of the grid",
}
_FAILURES = {
    "missing_region": "a region missing",
    "disconnected_films": "two or more regions disconnected or interrupted",
    "failed_films": "failure by the rule of Holste et al. (either of the two)",
}

_VARIANTS = {
    "int8": "8-bit convolutions (OpenVINO)",
    "fp16": "half precision (TensorRT)",
    "bf16": "bfloat16 (TensorRT)",
    "torch": "exported program (PyTorch)",
}

#: What the table of data sets says already.
_IN_TABLE = ("data set", "films")

Facts = Mapping[str, Any]


def model_card(manifest: Manifest) -> str:
    """The model card of a bundle that :func:`trainer.export.package.package` writes, Markdown."""
    sections = [
        [
            f"# Model card: {manifest.name} {manifest.version}",
            f"**{RESEARCH_USE}** Nobody may be diagnosed or treated by what this bundle says.",
            manifest.description,
        ],
        ["## What it is", *_contents(manifest)],
        ["## What it learned from", *_data(manifest)],
        ["## What was measured", *_measured(manifest)],
        ["## Limits: what was not measured", "\n".join(f"- {sentence}" for sentence in _unmeasured(manifest))],
    ]
    return "\n\n".join(block for section in sections for block in section) + "\n"


def _contents(manifest: Manifest) -> Iterator[str]:
    yield markdown(
        ["network", "task", "what it is", "parameters", "sees", "how it was trained"],
        [
            [
                member.name,
                member.task,
                member.network,
                f"{member.parameters:,}",
                f"{member.channels} x {member.height} x {member.width}",
                _training(manifest, member.name),
            ]
            for member in manifest.members
        ],
    )
    yield markdown(
        ["region", "its truth", "what it means here"],
        [[region.title, region.origin, region.note or "as its name says"] for region in manifest.regions],
    )
    if len(manifest.members_of("segmentation")) > 1:
        yield "A pixel's probabilities are the means over the segmentation networks; the masks are those of the means."
    if len(manifest.members_of("classification")) > 1:
        yield "The probability of a finding is the mean over the classification networks."
    if manifest.findings:
        yield (
            f"Probabilities are scaled with temperature {manifest.temperature:g}. Temperature and thresholds were "
            "chosen on the validation films, never on those that were measured."
        )
    several = len(manifest.members_of("segmentation")) > 1
    for name, facts in _runs(manifest).items():
        for region, amount in facts.get("lowered_logits", {}).items():
            yield (
                f"The loss {f'of {name} ' if several else ''}weighed the {region} up; its logit was lowered by "
                f"{amount:g} afterwards, for its best Dice on the validation films."
            )


def _training(manifest: Manifest, name: str) -> str:
    facts = _runs(manifest).get(name, {})
    if "copied_from" in facts:
        return f"taken from the bundle {facts['copied_from']}"
    recipe = manifest.recipe[name]
    training = facts["training"]
    words = [f"recipe {recipe['name']}", f"loss {recipe['loss']['name']}"]
    if recipe["network"]["checkpoint"]:
        words.append(f"started from the weights in {recipe['network']['checkpoint']}")
    if "epochs" in training:
        words.append(f"{training['epochs']} epochs, weights of epoch {training['chosen_epoch']}")
    return ", ".join(words)


def _data(manifest: Manifest) -> Iterator[str]:
    runs = {name: facts["data"] for name, facts in _runs(manifest).items() if "data" in facts}
    if runs and all(data["name"] == PHANTOMS for data in runs.values()):
        yield "**Synthetic radiographs only**, drawn by a program. No picture of a patient was used."
    yield markdown(
        ["network", "data set", "films to train", "to choose by", "to measure on", "patients in each"],
        [
            [
                name,
                data["name"],
                *(data["parts"][part] for part in ("train", "validation", "test")),
                " / ".join(str(data["patients"][part]) for part in ("train", "validation", "test")),
            ]
            for name, data in runs.items()
        ],
    )
    yield "Films were divided by patient: no patient is in two parts."
    said = {
        f"- {words}: {value}"
        for data in runs.values()
        for words, value in data["origin"].items()
        if words not in _IN_TABLE
    }
    yield "\n".join(sorted(said))


def _measured(manifest: Manifest) -> Iterator[str]:
    masks, findings = (manifest.metrics.get(task, {}) for task in ("segmentation", "classification"))
    if "figures" in masks:
        yield f"### Masks\n\n{_films(masks)}"
        yield from _masks(masks)
    if "figures" in findings:
        yield f"### Findings\n\n{_films(findings)}"
        yield from _findings(manifest, findings)
    if variants := manifest.metrics.get("variants"):
        yield "### Variants for other engines"
        yield markdown(
            ["variant", "network", "parity gate on the bundle's phantoms"],
            [
                [f"{variant}, {_VARIANTS[variant]}", name, "passed" if gate["passed"] else "; ".join(gate["sentences"])]
                for variant, gates in variants.items()
                for name, gate in gates.items()
            ],
        )
    if "figures" not in masks and "figures" not in findings:
        yield "Nothing: no films were kept back."


def _films(metrics: Facts) -> str:
    films, patients = metrics["films"], metrics["patients"]
    close = "" if films == patients else " Films of one patient count as independent, so intervals are too narrow."
    return (
        f"{films} films of {patients} patients that no network learned from or was chosen by, through the worker's "
        f"engine and post-processing; 95 % intervals from {metrics['replicates']:,} bootstrap resamples of "
        f"films.{close}"
    )


def _masks(metrics: Facts) -> Iterator[str]:
    figures, regions = metrics["figures"], metrics["regions"]
    rows = [[words, _figure(figures[key])] for key, words in _FIGURES.items() if _known(figures.get(key))]
    yield markdown(["", "mean (95 % interval)"], rows)
    scored = {name: facts for name, facts in regions.items() if facts["scored"]}
    yield markdown(
        ["region", "truth", "Dice", "Dice after post-processing"],
        [
            [_words(name), each["truth"], _figure(each["dice"]), _figure(each["dice_cleaned"])]
            for name, each in scored.items()
        ],
    )
    if alone := metrics.get("members"):
        yield markdown(
            ["network alone", "mean Dice", "mean Jaccard", "the ensemble's mean Dice is higher by"],
            [
                [name, *(_figure(each[key]) for key in (MEAN_DICE, MEAN_JACCARD, ENSEMBLE_ABOVE))]
                for name, each in alone.items()
            ],
        )
    failures = metrics["failures"]
    strange = metrics["no_chest"]
    total = metrics["films"] - strange["films"]
    yield markdown(
        [f"failures of {total} films", "before post-processing", "after"],
        [[words, failures["raw"][key], failures["cleaned"][key]] for key, words in _FAILURES.items()],
    )
    if strange["films"]:
        yield (
            f"{strange['films']} of these films show no frontal chest: they enter no number above, and the night would "
            f"refuse {strange['refused']} of them."
        )
    yield f"Of the {total} films that show one the night would refuse {metrics['refused']}."


def _findings(manifest: Manifest, metrics: Facts) -> Iterator[str]:
    thresholds = {finding.finding: finding.threshold for finding in manifest.findings}
    rows: list[list[object]] = [
        [
            title(name),
            f"{each['positive']} of {each['positive'] + each['negative']}",
            thresholds[name],
            *(_figure(each[key]) for key in ("auroc", "sensitivity", "specificity", "f1")),
        ]
        for name, each in metrics["findings"].items()
    ]
    figures = metrics["figures"]
    mean = [_figure(figures[f"mean_{key}"]) for key in ("auroc", "sensitivity", "specificity", "f1")]
    rows.append(["**Mean**", "", "", *mean])
    yield markdown(["finding", "positive films", "threshold", "AUROC", "sensitivity", "specificity", "F1"], rows)
    if len(metrics["members"]) > 1:
        yield markdown(
            ["network alone", "mean AUROC", "the ensemble is better by"],
            [
                [name, _figure(each["mean_auroc"]), _figure(each["ensemble_above"])]
                for name, each in metrics["members"].items()
            ],
        )
    if metrics.get("calibration"):
        yield from _calibration(metrics)


def _calibration(metrics: Facts) -> Iterator[str]:
    """The bins themselves are in the manifest."""
    yield (
        "How far probabilities can be taken at their word, after scaling with the temperature: the expected "
        "calibration error in ten bins of equally many films is 0 when of the films given 30 % three in ten are "
        "positive."
    )
    yield markdown(
        ["finding", "expected calibration error"],
        [[title(name), each["calibration_error"]] for name, each in metrics["findings"].items()],
    )
    yield f"![Reliability: share of positives against mean probability]({RELIABILITY})"


def _unmeasured(manifest: Manifest) -> Iterator[str]:
    masks, findings = (manifest.metrics.get(task, {}) for task in ("segmentation", "classification"))
    if "copied_from" in masks:
        what = "networks are those" if len(manifest.members_of("segmentation")) > 1 else "network is that"
        yield f"The masks: their {what} of {masks['copied_from']}, whose model card has the figures."
    elif "figures" not in masks:
        yield "The masks: no films were kept back to measure them on."
    derived = [region.title for region in manifest.regions if region.origin == "derived"]
    if derived:
        yield (
            f"How right these regions are: {', '.join(derived)}. Their truth was derived by a rule, not drawn by "
            "anyone; how well the network learned the rule is no accuracy."
        )
    if manifest.findings and "figures" not in findings:
        yield "The findings: no films were kept back to measure them on."
    chosen = findings.get("findings", {})
    unknown = [title(f.finding) for f in manifest.findings if chosen and f.finding not in chosen]
    if unknown:
        yield f"Findings of which no measured film says anything: {', '.join(unknown)}."
    if unsettled := [title(finding) for finding in manifest.metrics.get("no_threshold", ())]:
        yield (
            f"From which probability on these findings are present: {', '.join(unsettled)}. The validation films show "
            f"none, or nothing else; the threshold {NO_THRESHOLD} stands in and means nothing."
        )
    groups = masks.get("age_groups", {})
    absent = [words for key, words in _AGE_GROUPS.items() if key != "age_unknown" and not groups.get(key)]
    if groups and absent:
        yield f"Masks of children aged: {', '.join(absent)}."
    names = sorted({facts["data"]["name"] for facts in _runs(manifest).values() if "data" in facts})
    if names == [PHANTOMS]:
        yield "Films of patients: all figures are about phantoms and are no evidence about patients."
    elif names:
        yield f"Films from anywhere but {', '.join(names)}: other hospitals, devices, projections and age groups."
    yield "Agreement with several readers, and whether anyone is better off."


def _runs(manifest: Manifest) -> dict[str, Any]:
    return dict(manifest.recipe.get("runs", {}))


def _known(figure: Facts | None) -> bool:
    return figure is not None and figure["value"] is not None


def _figure(figure: Facts) -> str:
    if not _known(figure):
        return NOTHING
    if figure["low"] is None:
        return number(figure["value"])
    return f"{figure['value']:.3f} ({figure['low']:.3f}-{figure['high']:.3f})"


def _words(name: str) -> str:
    return name.replace("_", " ").capitalize()
