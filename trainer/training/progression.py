"""How a network comes to its answer: one validation film's probabilities after every epoch (Wang et al.).

The poster shows a single film after several epochs of training. Each epoch leaves a small grey picture in the run
folder's ``progression/``, so that a training that was cut off loses none; at the end a choice of them is laid side by
side. The film is the first of the validation part that shows a chest.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2
import lightning
import numpy as np
import numpy.typing as npt
import torch

from trainer.data.store import Samples
from trainer.evaluation.drawing import canvas, grey, save
from trainer.networks.heads import region_channels
from trainer.recipe import Recipe

#: Epochs that the picture shows, the first and the last among them.
SHOWN = 7


class Progression(lightning.Callback):  # type: ignore[misc]
    """Writes ``FOLDER/epoch-0001.png`` and so on: the regions' probabilities side by side, 255 is 1.

    Parameters
    ----------
    folder
        Is made when missing.
    picture
        The film, float (1, H, W).
    """

    def __init__(self, folder: Path, recipe: Recipe, picture: npt.NDArray[np.floating]) -> None:
        self.folder, self.recipe = folder, recipe
        self.picture = torch.from_numpy(np.array(picture, np.float32))[None]

    def on_validation_epoch_end(self, trainer: Any, module: Any) -> None:
        """Ask the network as it is now."""
        if not trainer.is_global_zero:
            return
        with torch.inference_mode():
            logits = module.network(module.picture({"picture": self.picture.to(module.device)})).float()
        channels = logits.softmax(1) if self.recipe.network.activation == "softmax" else logits.sigmoid()
        regions = channels[0, -(len(self.recipe.data.regions) - 1) :]
        strip = np.hstack([np.asarray(np.rint(255 * region.cpu().numpy()), np.uint8) for region in regions])
        self.folder.mkdir(exist_ok=True)
        partial = self.folder / ".part.png"
        cv2.imwrite(str(partial), strip)
        partial.replace(_file(self.folder, trainer.current_epoch + 1))


def draw_progression(folder: Path, recipe: Recipe, film: Samples, epochs: int, path: Path) -> str:
    """The film's truth beside its probabilities after some of the ``epochs``, a row a region; bright is probable.

    ``film`` holds the one film; epochs whose picture is missing are left out.
    """
    assert film.labels is not None
    names = [region.title for region in recipe.region_definitions[1:]]
    labels = torch.from_numpy(np.array(film.labels[:1]))
    truth = region_channels(labels, len(recipe.data.regions), overlapping=recipe.data.overlapping)[0, 1:].numpy()
    strips = {epoch: cv2.imread(str(_file(folder, epoch)), cv2.IMREAD_GRAYSCALE) for epoch in some_epochs(epochs)}
    seen = {epoch: np.hsplit(strip, len(names)) for epoch, strip in strips.items() if strip is not None}
    picture = grey(film, 0)
    figure = canvas(1.6 * (2 + len(seen)), 1.7 * len(names) + 0.4)
    axes = figure.subplots(len(names), 2 + len(seen), squeeze=False)
    for row, (line, name) in enumerate(zip(axes, names, strict=True)):
        line[0].imshow(picture, cmap="gray", vmin=0, vmax=255)
        line[0].set_ylabel(name, fontsize=9)
        line[1].imshow(truth[row], cmap="inferno", vmin=0, vmax=1)
        for axis, regions in zip(line[2:], seen.values(), strict=True):
            axis.imshow(regions[row], cmap="inferno", vmin=0, vmax=255)
        for axis in line:
            axis.set(xticks=[], yticks=[])
    for axis, title in zip(axes[0], ["film", "truth", *(f"epoch {epoch}" for epoch in seen)], strict=True):
        axis.set_title(title, fontsize=9)
    return save(figure, path)


def first_chest(labels: Iterable[Any]) -> int:
    """The place of the first label map or bit field that is not all background; 0 if all are."""
    return next((place for place, each in enumerate(labels) if np.asarray(each).any()), 0)


def some_epochs(epochs: int) -> list[int]:
    """At most :data:`SHOWN` epochs from 1 to ``epochs``, ever further apart: much happens in the first."""
    steps = np.geomspace(1, epochs, min(SHOWN, epochs))
    return sorted({math.floor(step + 0.5) for step in steps} | {epochs})[-SHOWN:]


def _file(folder: Path, epoch: int) -> Path:
    return folder / f"epoch-{epoch:04d}.png"
