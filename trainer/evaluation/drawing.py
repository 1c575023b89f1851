"""What the figures of a report share: a canvas without global state, pictures, colours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from trainer.data.store import Samples

DOTS_PER_INCH = 110

#: Paul Tol's muted scheme: distinguishable for colour-blind readers, one per finding.
PALETTE = (
    "#332288", "#88CCEE", "#44AA99", "#117733", "#999933", "#DDCC77", "#CC6677", "#882255", "#AA4499", "#666666",
)  # fmt: skip


def canvas(width: float, height: float) -> Figure:
    """An empty figure of inches that belongs to no window."""
    figure = Figure(figsize=(width, height), dpi=DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: Path) -> str:
    """Write a PNG and return its name."""
    figure.savefig(path)
    return path.name


def grey(samples: Samples, row: int) -> npt.NDArray[np.uint8]:
    """The first channel of a film as a person sees it: uint8 (height, width), stretched to the full range."""
    picture = np.asarray(samples.pictures[row][0], np.float32)
    low, high = float(picture.min()), float(picture.max())
    return np.asarray(np.rint((picture - low) / max(high - low, 1e-6) * 255.0), np.uint8)
