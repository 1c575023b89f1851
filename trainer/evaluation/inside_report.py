"""``inside/``: features, deactivated filters and clipped lungs of a run, as pictures and numbers.

=================  ============================================================
report.md          the three looks in words; names no film and no patient
summary.json       the numbers for programs
features.png       features after the penultimate upsampling step
filters.png        the groups of filters, and maps of each
clipped.png        films, the same but for the lungs clipped, and what is found
=================  ============================================================
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from schema.regions import is_lung
from trainer.data.store import Samples
from trainer.errors import DataError, RunError
from trainer.evaluation.drawing import canvas, save
from trainer.evaluation.inside import (
    DRAWS,
    FILMS,
    QUARTER,
    THREE_QUARTERS,
    Clipped,
    FilterGroups,
    FloatArray,
    clip_lungs,
    features_of,
    found_again,
    group_filters,
    overlap_without,
    steps_of,
)
from trainer.evaluation.subjects import Progress
from trainer.evaluation.tables import RESEARCH_USE, markdown, number, write_json
from trainer.recipe import Recipe
from trainer.training.run_folder import Run
from worker.results.overlay import draw_regions

SEED = 1
#: Feature maps and clipped films that are drawn; from which activation on a map is bright in Figure 2.
_MAPS, _CLIPPED, _BRIGHT = 24, 2, 0.1


def write_inside(run: Run, samples: Samples, out: Path, progress: Progress) -> dict[str, Any]:
    """Look into a run's segmentation network.

    Parameters
    ----------
    run
        Finished, and trained to segment.
    samples
        Films as the network sees them.
    out
        Folder for the results.
    progress
        Told the films done.

    Returns
    -------
    What ``summary.json`` holds.

    Raises
    ------
    RunError
        The run classifies, or its network has another form.
    DataError
        There are no films.
    """
    recipe = run.recipe
    if recipe.task != "segmentation":
        raise RunError(f"{run.folder} classifies films: only networks that segment are looked into.")
    rng = np.random.Generator(np.random.PCG64(SEED))
    chests = [row for row in range(len(samples)) if samples.labels is not None and np.any(samples.labels[row])]
    if not chests:
        raise DataError("There is no film with a chest to look into: choose another part or other films.")
    rows = rng.permutation(chests)[:FILMS].tolist()
    network = run.network()
    steps = steps_of(network)
    overlaps: dict[str, list[float]] = {"lower": [], "upper": [], "deep": []}
    groups: FilterGroups | None = None
    clipped: list[Clipped] = []
    for done, row in enumerate(rows, 1):
        picture = np.array(samples.pictures[row], np.float32)
        grouped = group_filters(features_of(network, steps.early, picture), SEED)
        groups = groups or grouped
        deep = np.arange(len(features_of(network, steps.deep, picture)))
        for name, module, filters, share in (
            ("lower", steps.early, grouped.low, QUARTER),
            ("upper", steps.early, grouped.high, QUARTER),
            ("deep", steps.deep, deep, THREE_QUARTERS),
        ):
            overlaps[name].append(overlap_without(network, recipe, module, filters, share, picture=picture, rng=rng))
        if any(is_lung(name) for name in recipe.data.regions):
            clipped.append(clip_lungs(network, recipe, samples, row))
        progress("films looked into", done, len(rows))
    assert groups is not None
    out.mkdir(parents=True, exist_ok=True)
    first = np.array(samples.pictures[rows[0]], np.float32)
    _draw_features(first[0], features_of(network, steps.upsampling, first), out / "features.png")
    _draw_groups(groups, out / "filters.png")
    if clipped:
        _draw_clipped(clipped[:_CLIPPED], recipe, out / "clipped.png")
    summary = {
        "films": len(rows),
        "draws": DRAWS,
        "filters": {"lower": len(groups.low), "upper": len(groups.high)},
        "overlap": {name: float(np.nanmean(values)) for name, values in overlaps.items() if not np.isnan(values).all()},
        "found_again": found_again(clipped, recipe) if clipped else {},
        "research_use": RESEARCH_USE,
    }
    write_json(out / "summary.json", summary)
    _write_report(run, summary, out)
    return summary


def _write_report(run: Run, summary: dict[str, Any], out: Path) -> None:
    titles = {
        "lower": f"a quarter of the less activated filters ({summary['filters']['lower']}) before the third step down",
        "upper": f"a quarter of the more activated ones ({summary['filters']['upper']}) there",
        "deep": "three quarters of all filters after the last step down",
    }
    rows = [[titles[name], value] for name, value in summary["overlap"].items()]
    titles_of = {region.name: region.title for region in run.recipe.region_definitions}
    found = [[titles_of[name], number(value)] for name, value in summary["found_again"].items()]
    blocks = [
        f"# Inside {run.recipe.name}",
        f"**{RESEARCH_USE}**",
        f"{summary['films']} films drawn at random. After Novikov et al., Figures 2, 4 and 8.",
        "## Features after the penultimate upsampling step",
        "The most activated ones, on the first of the films; bright is high.\n\n![Features](features.png)",
        "## Deactivated filters",
        f"Jaccard between what is found with and without them, the mean over the films and {summary['draws']} draws "
        "each. 1 means that nothing changed.",
        markdown(["switched off", "Jaccard"], rows),
        f"![Groups of filters; maps are thresholded at {_BRIGHT}](filters.png)",
    ]
    if found:
        blocks += [
            "## Clipped lungs",
            "Everything but the lungs and some padding is made dark. Jaccard between what is found on whole and on "
            "clipped films: a region outside the lungs that is found again is found by its neighbourhood.",
            markdown(["region", "Jaccard"], found),
            "![Film, clipped film, and what is found on each](clipped.png)",
        ]
    (out / "report.md").write_text("\n\n".join(blocks) + "\n", "utf-8")


def _draw_features(picture: FloatArray, maps: FloatArray, path: Path) -> str:
    strongest = np.argsort(-np.abs(maps).mean(axis=(1, 2)))[:_MAPS]
    columns = 5
    rows = -(-(1 + len(strongest)) // columns)
    figure = canvas(2.0 * columns, 2.0 * rows)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    axes[0].imshow(picture, cmap="gray")
    for axis, place in zip(axes[1:], strongest, strict=False):
        axis.imshow(maps[place], cmap="viridis")
    for axis in axes:
        axis.axis("off")
    return save(figure, path)


def _draw_groups(groups: FilterGroups, path: Path) -> str:
    """Figure 2: each group's mean map, and maps of it that are bright from 0.1 on."""
    columns = 7
    figure = canvas(1.6 * columns, 3.6)
    for line, (title, places) in zip(
        figure.subplots(2, columns), (("lower", groups.low), ("upper", groups.high)), strict=True
    ):
        if len(places):
            line[0].imshow(groups.maps[places].mean(axis=0), cmap="viridis", vmin=0, vmax=float(groups.maps.max()))
        line[0].set_title(f"{title}: mean of {len(places)}", fontsize=8)
        for axis, place in zip(line[1:], places, strict=False):
            axis.imshow(groups.maps[place] > _BRIGHT, cmap="gray", vmin=0, vmax=1)
        for axis in line:
            axis.axis("off")
    return save(figure, path)


def _draw_clipped(clipped: list[Clipped], recipe: Recipe, path: Path) -> str:
    figure = canvas(10.0, 2.6 * len(clipped) + 0.3)
    axes = figure.subplots(len(clipped), 4, squeeze=False)
    for line, film in zip(axes, clipped, strict=True):
        low, high = float(film.picture.min()), float(film.picture.max())
        whole, rest = (
            np.asarray(np.rint(255 * (plane - low) / max(high - low, 1e-6)), np.uint8)
            for plane in (film.picture, film.clipped)
        )
        line[0].imshow(whole, cmap="gray", vmin=0, vmax=255)
        line[1].imshow(draw_regions(whole, film.found, recipe.region_definitions))
        line[2].imshow(rest, cmap="gray", vmin=0, vmax=255)
        line[3].imshow(draw_regions(rest, film.found_clipped, recipe.region_definitions))
        for axis in line:
            axis.set(xticks=[], yticks=[])
    for axis, title in zip(axes[0], ("film", "found", "clipped", "found there"), strict=True):
        axis.set_title(title, fontsize=9)
    return save(figure, path)
