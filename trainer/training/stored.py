"""Arrays on disk, passed on by the name of their file: to other processes, and to whoever opens a run later."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.data.store import Samples


@dataclass(frozen=True)
class StoredArray:
    """An array that is mapped from a file, whole and C-ordered; anything else is held in memory.

    Pickling it passes the file's name on, not its content.
    """

    array: npt.NDArray[Any]

    def __getstate__(self) -> dict[str, Any]:
        return {"mapped": mapped} if (mapped := _mapped(self.array)) else {"array": self.array}

    def __setstate__(self, state: dict[str, Any]) -> None:
        object.__setattr__(self, "array", _open(**state["mapped"]) if "mapped" in state else state["array"])


def store_samples(samples: Samples, path: Path) -> None:
    """Note in ``path`` where the films lie, and keep what is small about them beside the names of their files.

    Files below ``path``'s folder are noted relative to it, so that the folder may be moved.
    """
    arrays = {"pictures": samples.pictures[:, 0], "labels": samples.labels, "places": samples.places}
    facts: dict[str, Any] = {"digest": samples.digest, "channels": samples.pictures.shape[1], "arrays": {}}
    facts["derived"] = list(samples.derived)
    facts["overlapping"] = samples.overlapping
    for name, array in arrays.items():
        if array is None:
            continue
        mapped = _mapped(array)
        if mapped is None:
            raise ValueError(f"{name} are not mapped from a file")
        file = Path(mapped["file"])
        inside = file.is_relative_to(path.parent.resolve())
        facts["arrays"][name] = {**mapped, "file": str(file.relative_to(path.parent.resolve()) if inside else file)}
    partial = path.with_name(f"{path.name}.part")
    with partial.open("wb") as stream:
        np.savez(
            stream,
            facts=np.asarray(json.dumps(facts)),
            targets=samples.targets,
            names=np.asarray(samples.names),
            patients=np.asarray(samples.patients),
            ages=samples.ages,
        )
    partial.replace(path)


def open_samples(path: Path) -> Samples:
    """What :func:`store_samples` noted.

    Raises
    ------
    FileNotFoundError
        The note or the films are gone.
    """
    with np.load(path) as kept:
        facts = json.loads(str(kept["facts"]))
        arrays = {}
        for name, mapped in facts["arrays"].items():
            arrays[name] = _open(**{**mapped, "file": str(path.parent / mapped["file"])})
        planes = arrays["pictures"]
        return Samples(
            pictures=np.broadcast_to(planes[:, None], (len(planes), facts["channels"], *planes.shape[1:])),
            labels=arrays.get("labels"),
            targets=kept["targets"],
            places=arrays.get("places"),
            names=tuple(str(name) for name in kept["names"]),
            patients=tuple(str(patient) for patient in kept["patients"]),
            ages=kept["ages"],
            digest=facts["digest"],
            derived=tuple(facts.get("derived", ())),
            overlapping=bool(facts.get("overlapping", False)),
        )


def _mapped(array: npt.NDArray[Any]) -> dict[str, Any] | None:
    """File, type, offset and shape of the memory map that ``array`` is all of; None if there is none."""
    owner = array
    while isinstance(owner.base, np.ndarray):
        owner = owner.base
    if not isinstance(owner, np.memmap) or not owner.filename:
        return None
    if (owner.shape, owner.strides) != (array.shape, array.strides):
        return None
    place = {"dtype": owner.dtype.str, "offset": owner.offset, "shape": list(owner.shape)}
    return {"file": str(Path(str(owner.filename)).resolve()), **place}


def _open(file: str, dtype: str, offset: int, shape: list[int]) -> npt.NDArray[Any]:
    return np.memmap(file, dtype, "r", offset, tuple(shape))
