"""A made-up data set of a few films in the layout of JSRT and SCR: neither may be passed on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]

#: Region → its folder in SCR's archive, and what is drawn: row, column, half height, half width in shares of the side.
FOLDERS: dict[str, tuple[str, tuple[float, float, float, float]]] = {
    "left_lung": ("left lung", (0.50, 0.72, 0.32, 0.15)),
    "right_lung": ("right lung", (0.50, 0.28, 0.32, 0.15)),
    "heart": ("heart", (0.66, 0.54, 0.12, 0.14)),
    "left_clavicle": ("left clavicle", (0.24, 0.70, 0.03, 0.15)),
    "right_clavicle": ("right clavicle", (0.24, 0.30, 0.03, 0.15)),
}
#: As published: with a nodule and without, odd and even.
NAMES = ("JPCLN001", "JPCLN002", "JPCLN003", "JPCNN001", "JPCNN002", "JPCNN093")


def scr_masks(side: int, shift: float = 0.0) -> dict[str, Mask]:
    """Region → its mask, bool (side, side), moved to the right by ``shift`` of the side."""
    rows, columns = (np.indices((side, side)) + 0.5) / side
    return {
        region: ((rows - row) / height) ** 2 + ((columns - column - shift) / width) ** 2 <= 1.0
        for region, (_, (row, column, height, width)) in FOLDERS.items()
    }


def scanned_film(side: int, shift: float = 0.0, seed: int = 0) -> npt.NDArray[np.uint16]:
    """A film of 12 bits as it was scanned: large numbers where it is black."""
    masks = scr_masks(side, shift)
    film = np.full((side, side), 1500.0)
    for region, grey in (("left_lung", 3000), ("right_lung", 3000), ("heart", 1100)):
        film[masks[region]] = grey
    film[masks["left_clavicle"] | masks["right_clavicle"]] -= 600
    noise = np.random.default_rng(seed).normal(0, 40, film.shape)
    return np.clip(film + noise, 0, 4095).astype(np.uint16)


def shift_of(number: int) -> float:
    """How far the chest of the film of this place in the set is moved."""
    return 0.01 * (number % 5 - 2)


def write_scr(root: Path, names: Sequence[str] = NAMES, *, side: int = 64, described: bool = True) -> Path:
    """Films of ``side`` x ``side`` pixels and masks half as large, as in the archives.

    ``described`` writes the description that says how small the films are; the layout's own are 2048 x 2048.
    """
    (root / "All247images").mkdir(parents=True)
    for number, name in enumerate(names):
        scanned_film(side, shift_of(number), number).astype(">u2").tofile(root / "All247images" / f"{name}.IMG")
        fold = "fold1" if int(name[-1]) % 2 else "fold2"
        write_masks(root / "scratch" / fold / "masks", name, scr_masks(side // 2, shift_of(number)))
    if described:
        text = f'layout = "jsrt_scr"\n[images.raw]\nrows = {side}\ncolumns = {side}\n'
        (root / "dataset.toml").write_text(text, "utf-8")
    return root


def write_masks(folder: Path, name: str, masks: dict[str, Mask]) -> None:
    """A GIF for each region, below the folder of masks."""
    for region, mask in masks.items():
        path = folder / FOLDERS[region][0] / f"{name}.gif"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(imagecodecs.gif_encode(mask.astype(np.uint8) * 255))


def as_png(root: Path) -> None:
    """Turn the films into what people convert them to: 8 bits, white dense."""
    for path in (root / "All247images").glob("*.IMG"):
        stored = np.fromfile(path, ">u2")
        side = int(np.sqrt(stored.size))
        cv2.imwrite(str(path.with_suffix(".png")), (255 - stored.reshape(side, side) // 16).astype(np.uint8))
        path.unlink()
