"""What every object says of the program that made it (PS3.3 C.7.5.1, C.8.31) and of its use."""

from __future__ import annotations

from typing import Any

from schema.outputs import OutputKind
from worker import __version__

MANUFACTURER = "Carina"
MODEL_NAME = "Carina chest radiograph reader"
STATEMENT = "Research use, not a medical device."

#: Series Number and Series Description of each kind; numbers above those of modalities.
SERIES: dict[OutputKind, tuple[int, str]] = {
    OutputKind.SEGMENTATION: (9701, "Carina regions (research use)"),
    OutputKind.REPORT: (9702, "Carina report (research use)"),
    OutputKind.OVERLAY: (9703, "Carina overlay (research use)"),
    OutputKind.HEATMAP: (9704, "Carina activation maps (research use)"),
}

#: Arguments of every highdicom object.
EQUIPMENT: dict[str, Any] = {
    "manufacturer": MANUFACTURER,
    "manufacturer_model_name": MODEL_NAME,
    "software_versions": __version__,
}


def engine_words(engine: dict[str, Any]) -> dict[str, str]:
    """The engine a result was computed with: backend and version, precision, device."""
    return {
        name: str(engine[name]) for name in ("backend", "backend_version", "precision", "device") if engine.get(name)
    }
