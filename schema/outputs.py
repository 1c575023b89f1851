"""What goes back to the hospital about a film."""

from __future__ import annotations

from enum import StrEnum


class OutputKind(StrEnum):
    """One kind of DICOM object made of a film's result (docs/pacs.md says who shows which)."""

    #: DICOM Segmentation, binary, one segment per region (PS3.3 A.51).
    SEGMENTATION = "segmentation"
    #: Comprehensive SR, TID 1500: measurements, probabilities, presence (PS3.3 A.35.2).
    REPORT = "report"
    #: Secondary capture of the film with the regions' outlines (PS3.3 A.8.4).
    OVERLAY = "overlay"
    #: Secondary capture of the film with each finding's class activation map.
    HEATMAP = "heatmap"
