"""Pictures for people: a film with its regions or a class activation map on it.

The film is shown as the networks saw it, the patient's right at the picture's left, at most
:data:`LONGEST_SIDE` pixels long. Region colours are the bundle's.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable

import cv2
import numpy as np
import numpy.typing as npt

from schema.regions import RegionDefinition
from worker.film.geometry import to_film_grid
from worker.film.prepared import Geometry

ByteArray = npt.NDArray[np.uint8]

LONGEST_SIDE = 512
_FILL_OPACITY = 0.22
_LINE_OPACITY = 0.95
_HEAT_OPACITY = 0.55
_JPEG_QUALITY = 82


def display_size(rows: int, columns: int, longest: int = LONGEST_SIDE) -> tuple[int, int]:
    """Rows and columns of a film shown with its longest side at most ``longest`` pixels."""
    scale = min(1.0, longest / max(rows, columns))
    return max(1, round(rows * scale)), max(1, round(columns * scale))


def shrink(picture: ByteArray, longest: int = LONGEST_SIDE) -> ByteArray:
    """A grey picture (rows, columns), uint8, at display size; small ones are returned as they are."""
    rows, columns = display_size(picture.shape[0], picture.shape[1], longest)
    if (rows, columns) == picture.shape[:2]:
        return picture
    return np.asarray(cv2.resize(picture, (columns, rows), interpolation=cv2.INTER_AREA), np.uint8)


def labels_on(shape: tuple[int, ...], labels: ByteArray) -> ByteArray:
    """A label map of the network's grid, uint8, at ``shape`` (rows, columns) of a picture of the whole film."""
    return to_film_grid(labels, Geometry(shape[0], shape[1]))


def region_layer(
    labels: ByteArray, regions: Iterable[RegionDefinition], *, fill: float = _FILL_OPACITY, outlines: bool = True
) -> ByteArray:
    """Regions as a transparent layer: filled with the opacity ``fill`` (0-1), outlined strongly if ``outlines``.

    Parameters
    ----------
    labels
        uint8 (rows, columns) at display size.
    regions
        Value 0 is background and stays transparent.

    Returns
    -------
    uint8 RGBA of shape (rows, columns, 4).
    """
    layer = np.zeros((*labels.shape, 4), np.uint8)
    for region in regions:
        if region.value == 0:
            continue
        mask = np.asarray(labels == region.value, np.uint8)
        layer[mask > 0] = (*region.colour, round(255 * fill))
        if not outlines:
            continue
        # The outline lies inside the region, so that neighbours do not paint over each other.
        inner = cv2.erode(mask, np.ones((3, 3), np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=0)
        layer[(mask > 0) & (inner == 0)] = (*region.colour, round(255 * _LINE_OPACITY))
    return layer


def draw_regions(picture: ByteArray, labels: ByteArray, regions: Iterable[RegionDefinition]) -> ByteArray:
    """A grey picture with its regions on it: uint8 RGB of the picture's (rows, columns, 3)."""
    layer = region_layer(labels, regions).astype(np.float32)
    return _blend(picture, layer[..., :3], layer[..., 3:] / 255.0)


def heat_layer(activation: ByteArray, shape: tuple[int, ...]) -> ByteArray:
    """A class activation map, uint8 (height, width), as a transparent layer of ``shape``.

    The map covers the whole film; opacity grows with activation.
    Returns uint8 RGBA of shape (rows, columns, 4).
    """
    large = np.asarray(cv2.resize(activation, (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC), np.uint8)
    colours = cv2.cvtColor(cv2.applyColorMap(large, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)
    opacity = np.asarray(large * _HEAT_OPACITY, np.uint8)
    return np.dstack([colours, opacity])


def draw_heatmap(picture: ByteArray, activation: ByteArray) -> ByteArray:
    """A grey picture with a class activation map on it: uint8 RGB (rows, columns, 3)."""
    layer = heat_layer(activation, picture.shape).astype(np.float32)
    return _blend(picture, layer[..., :3], layer[..., 3:] / 255.0)


def jpeg_bytes(picture: ByteArray) -> bytes:
    """A grey or RGB picture as a JPEG."""
    shown = picture if picture.ndim == 2 else cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".jpg", shown, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])[1].tobytes()


def png_bytes(layer: ByteArray) -> bytes:
    """An RGBA layer as a PNG."""
    return cv2.imencode(".png", cv2.cvtColor(layer, cv2.COLOR_RGBA2BGRA))[1].tobytes()


def jpeg_address(picture: ByteArray) -> str:
    """A grey or RGB picture as a ``data:`` address of a JPEG, for a page without other files."""
    return _address("jpeg", jpeg_bytes(picture))


def png_address(layer: ByteArray) -> str:
    """An RGBA layer as a ``data:`` address of a PNG."""
    return _address("png", png_bytes(layer))


def _address(kind: str, encoded: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(encoded).decode('ascii')}"


def _blend(picture: ByteArray, colours: npt.NDArray[np.float32], opacity: npt.NDArray[np.float32]) -> ByteArray:
    grey = picture[..., None].astype(np.float32)
    return np.asarray(np.rint(grey * (1.0 - opacity) + colours * opacity), np.uint8)
