"""Small data directories and recipes for the tests of trainer.data."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from trainer.recipe import Recipe, check_recipe

REGIONS = ("background", "left_lung", "right_lung")

WritePicture = Callable[..., Path]
WriteTable = Callable[[Path, Sequence[Mapping[str, Any]]], Path]
MakeRecipe = Callable[..., Recipe]


@pytest.fixture(autouse=True)
def site(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own, since keys of patients are made with its site key."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("CARINA_HOME", str(home))
    return home


@pytest.fixture
def picture() -> Callable[..., npt.NDArray[Any]]:
    """A made-up film: uint8 or uint16 (rows, columns), a gradient with noise of ``seed``."""

    def make(rows: int = 40, columns: int = 30, seed: int = 0, dtype: type = np.uint8) -> npt.NDArray[Any]:
        rng = np.random.default_rng(seed)
        high = np.iinfo(dtype).max
        ramp = np.linspace(0, high * 0.8, rows)[:, None] * np.ones(columns)
        return np.clip(ramp + rng.integers(0, high // 5, (rows, columns)), 0, high).astype(dtype)

    return make


@pytest.fixture
def write() -> WritePicture:
    """Write an array as a picture; the folder is made."""

    def save(path: Path, array: npt.NDArray[Any]) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(path), array)
        return path

    return save


@pytest.fixture
def write_table() -> WriteTable:
    """Write rows as CSV."""

    def save(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        return path

    return save


@pytest.fixture
def labels() -> npt.NDArray[np.uint8]:
    """A label map of 40 x 30 pixels with two lungs; the patient's right is on the left."""
    drawn = np.zeros((40, 30), np.uint8)
    drawn[8:30, 4:12] = 2
    drawn[10:28, 18:26] = 1
    return drawn


@pytest.fixture
def labelled_folder(
    tmp_path: Path, picture: Callable[..., npt.NDArray[Any]], write: WritePicture, labels: npt.NDArray[np.uint8]
) -> Path:
    """``images/`` and ``labels/`` with six films."""
    root = tmp_path / "films"
    for number in range(6):
        write(root / "images" / f"film-{number}.png", picture(seed=number))
        write(root / "labels" / f"film-{number}.png", labels)
    return root


@pytest.fixture
def make_recipe() -> MakeRecipe:
    """A small recipe; ``regions`` or ``findings`` decide its task, ``data`` is merged into its data table."""

    def make(
        *,
        regions: Sequence[str] = (),
        findings: Sequence[str] = (),
        height: int = 32,
        width: int = 32,
        channels: int = 1,
        **data: Any,
    ) -> Recipe:
        steps: list[dict[str, Any]] = [
            {"step": "min_max"},
            {"step": "resize", "height": height, "width": width},
        ]
        if channels != 1:
            steps.append({"step": "channels", "count": channels})
        table = {
            "name": "test",
            "description": "",
            "task": "classification" if findings else "segmentation",
            "network": {"name": "x"},
            "preprocess": steps,
            "data": {"findings": list(findings), **data} if findings else {"regions": list(regions or REGIONS), **data},
            "loss": {"name": "x"},
            "training": {"epochs": 1, "batch_size": 1},
        }
        return check_recipe(table, "test")

    return make
