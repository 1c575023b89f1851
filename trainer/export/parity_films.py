"""Films by which a worker checks an engine: phantoms as each network sees them, and what it says of them.

Never pictures of patients: a bundle may be passed on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from schema.bundle import Member
from trainer.export.onnx_export import OUTPUTS
from worker.film import preprocess
from worker.phantom import make_phantom

FOLDER = "parity"
FILMS = 4
# Of no phantom that anything is trained on.
_SEED = 10**9 + 3
_ROWS, _COLUMNS = 300, 260
_RANDOMISE = 0.35

Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class CopiedFilms:
    """A bundle's parity films, by which members that are taken from it are still checked."""

    directory: Path
    films: tuple[str, ...]
    members: tuple[str, ...]

    def arrays(self, index: int) -> Arrays:
        """What film ``index`` says about the members."""
        with np.load(self.directory / self.films[index], allow_pickle=False) as film:
            return {key: film[key] for key in film.files if key.rpartition(".")[0] in self.members}


def write_parity_films(
    directory: Path, networks: Sequence[tuple[Member, nn.Module]], copied: CopiedFilms | None = None
) -> tuple[str, ...]:
    """Write the films and return their names within ``directory``.

    Parameters
    ----------
    networks
        Members and the modules that were exported for them, weights rounded.
    copied
        Films of members that have no module here; there are then as many films as these are.
    """
    (directory / FOLDER).mkdir()
    names = []
    for index in range(len(copied.films) if copied else FILMS):
        arrays: dict[str, Any] = dict(copied.arrays(index)) if copied else {}
        phantom = make_phantom(
            _SEED + index, rows=_ROWS, columns=_COLUMNS, pneumonia=index % 2 == 0, randomise=_RANDOMISE
        )
        for member, network in networks:
            arrays |= _said(member, network, preprocess.apply(member.preprocess, phantom.image, None))
        names.append(f"{FOLDER}/{index}.npz")
        np.savez_compressed(directory / names[-1], **arrays)
    return tuple(names)


def _said(member: Member, network: nn.Module, picture: npt.NDArray[np.float32]) -> Arrays:
    """The input in half precision, and what the network gives for exactly that."""
    given = picture.astype(np.float16)
    with torch.inference_mode():
        answer = network.eval()(torch.from_numpy(given.astype(np.float32))[None])
    outputs = answer if isinstance(answer, tuple) else (answer,)
    said = {
        f"{member.name}.{name}": output[0].numpy() for name, output in zip(OUTPUTS[member.task], outputs, strict=True)
    }
    if member.task == "segmentation":
        # A whole grid for each region: half the bytes, and far finer than the gate.
        said = {name: half_with_winners(values) for name, values in said.items()}
    return {f"{member.name}.input": given, **said}


def half_with_winners(probabilities: npt.NDArray[np.float32]) -> npt.NDArray[np.float16]:
    """Probabilities (regions, height, width) in half precision, every pixel still won by the same region.

    Where rounding makes two regions equal, the first would win: the winner is put one step above.
    """
    half = probabilities.astype(np.float16)
    winners = probabilities.argmax(axis=0)[None]
    highest = np.take_along_axis(half, winners, axis=0)
    tied = half.argmax(axis=0)[None] != winners
    np.put_along_axis(half, winners, np.where(tied, np.nextafter(highest, np.float16(2)), highest), axis=0)
    return half
