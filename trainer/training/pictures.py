"""Pictures of a training for people: curves, and films with truth beside prediction."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from trainer.data.store import Samples
from trainer.networks.heads import competing
from trainer.recipe import Recipe
from worker.results.overlay import draw_heatmap, draw_regions

ByteArray = npt.NDArray[np.uint8]

#: Films that are drawn.
OVERLAYS = 6
_GAP = 4
#: Drawn thicker.
_MAIN = frozenset({"loss", "mean_dice", "mean_auroc", "rate"})


def draw_curves(history: Sequence[dict[str, float]], path: Path) -> None:
    """Losses, the task's metrics and the learning rate over the epochs, as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    epochs = [row["epoch"] for row in history]
    rest = [name for name in history[0] if name not in {"epoch", "step", "rate", "train_loss", "loss"}]
    panels = {"loss": ["train_loss", "loss"], "metrics": rest, "learning rate": ["rate"]}
    titles = {"train_loss": "training", "loss": "validation"}
    figure = Figure(figsize=(15, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (title, names) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        for name in names:
            label = titles.get(name, name.replace("_", " "))
            axes.plot(epochs, [row[name] for row in history], label=label, lw=2 if name in _MAIN else 1, marker=".")
        axes.set(title=title, xlabel="epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        if len(names) > 1:
            axes.legend(fontsize="x-small")
    partial = path.with_name(f"{path.name}.part")
    figure.savefig(partial, dpi=100, format="png")
    partial.replace(path)


def draw_overlays(network: nn.Module, recipe: Recipe, samples: Samples, folder: Path) -> list[Path]:
    """Draw the first validation films to ``folder``.

    Segmentation: the truth's regions beside the prediction's. Classification: the film beside the heat map of the most
    probable finding, with known findings and probabilities as text below. Returns the files, named by number: a film's
    own name may tell whose it is.
    """
    folder.mkdir(exist_ok=True)
    written = []
    for number in range(min(OVERLAYS, len(samples))):
        picture = np.array(samples.pictures[number], np.float32)
        grey = np.asarray(np.round(np.clip(_unit(picture[0]), 0, 1) * 255), np.uint8)
        with torch.inference_mode():
            answer = network(torch.from_numpy(picture)[None])
        if recipe.task == "segmentation":
            maps = (samples.label_map(number), label_map(answer, recipe)[0])
            pair = [draw_regions(grey, labels, recipe.region_definitions) for labels in maps]
        else:
            probabilities = torch.sigmoid(answer[0][0]).numpy()
            heat = answer[1][0, int(probabilities.argmax())].numpy()
            heat = np.asarray(np.round(255 * heat / max(float(heat.max()), 1e-6)), np.uint8)
            pair = [np.repeat(grey[..., None], 3, axis=2), draw_heatmap(grey, heat)]
        shown = np.hstack([pair[0], np.full((len(grey), _GAP, 3), 255, np.uint8), pair[1]])
        if recipe.task == "classification":
            shown = _with_text(shown, recipe.data.findings, samples.targets[number], probabilities)
        path = folder / f"validation-{number + 1}.png"
        cv2.imwrite(str(path), cv2.cvtColor(shown, cv2.COLOR_RGB2BGR))
        written.append(path)
    return written


def label_map(logits: torch.Tensor, recipe: Recipe) -> ByteArray:
    """Label maps uint8 (N, H, W) of what a segmentation network answers, (N, channels, H, W)."""
    if recipe.network.activation == "sigmoid":
        logits = competing(logits[:, int(recipe.has_background) :].sigmoid(), recipe.network.threshold)
    return np.asarray(logits.argmax(dim=1).numpy(), np.uint8)


def _unit(plane: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Standardised pictures brought to 0..1; others are left as they are."""
    low, high = float(plane.min()), float(plane.max())
    if low >= 0 and high <= 1:
        return plane
    return (plane - np.float32(low)) / np.float32(high - low)


def _with_text(
    picture: ByteArray,
    findings: Sequence[str],
    targets: npt.NDArray[np.float32],
    probabilities: npt.NDArray[np.float32],
) -> ByteArray:
    """A line per finding below the picture: its probability, and what is known."""
    known = {0.0: "absent", 1.0: "present"}
    height = 14
    strip = np.full((height * len(findings) + 6, picture.shape[1], 3), 255, np.uint8)
    for line, (finding, target, probability) in enumerate(zip(findings, targets, probabilities, strict=True)):
        text = f"{finding}: {probability:.2f} ({known.get(float(target), 'not known')})"
        cv2.putText(strip, text, (4, height * (line + 1)), cv2.FONT_HERSHEY_SIMPLEX, 0.38, (0, 0, 0), 1, cv2.LINE_AA)
    return np.vstack([picture, strip])
