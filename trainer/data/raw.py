"""Pictures without any header: rows of 16-bit numbers, whose size and depth the data set's description says.

The films of the JSRT database (Shiraishi et al. 2000) come so: 2048 x 2048 numbers of 12 bits, the high byte first,
0.175 mm apart. Their numbers rise with the blackness of the scanned film, so bone is small and air is large: decided
after published programs that read these files, which turn them over (1 - value / 4096), for want of a word on it from
the database. ``inverted`` does the same. Pictures that others converted from them (PNG) are taken as all pictures are,
white dense.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from trainer.errors import DataError

#: The ending of raw pictures' file names, in capitals or not.
SUFFIX = ".img"

_BYTES = 2


class RawPictures(BaseModel):
    """How raw pictures are stored.

    ``rows`` and ``columns`` are in pixels; ``bits`` of the 16 are used; ``inverted`` pictures have small numbers where
    the body is dense. Their files' names end in :data:`SUFFIX`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    rows: int = Field(gt=0)
    columns: int = Field(gt=0)
    bits: int = Field(16, ge=1, le=16)
    byte_order: Literal["big", "little"] = "big"
    inverted: bool = False

    def describes(self, path: Path) -> bool:
        """Whether a file is one of these pictures, by its name."""
        return path.suffix.lower() == SUFFIX


def read_raw(path: Path, raw: RawPictures) -> npt.NDArray[np.float32]:
    """A raw picture as float32 (rows, columns) in 0-1, white dense: its values over the depth's highest.

    Raises
    ------
    DataError
        The file has another size than its description says, or values beyond the depth; without the file's name.
    OSError
        The file cannot be read.
    """
    size, wanted = path.stat().st_size, raw.rows * raw.columns * _BYTES
    if size != wanted:
        raise DataError(
            f"the raw picture has {size} bytes where {raw.rows} x {raw.columns} pixels of 16 bits have {wanted}: "
            "get the file again, or correct rows and columns of images.raw"
        )
    stored = np.fromfile(path, ">u2" if raw.byte_order == "big" else "<u2").reshape(raw.rows, raw.columns)
    highest = (1 << raw.bits) - 1
    if int(stored.max()) > highest:
        raise DataError(
            f"the raw picture has the value {int(stored.max())}, and {raw.bits} bits end at {highest}: correct bits or "
            "byte_order of images.raw"
        )
    picture = stored.astype(np.float32) / np.float32(highest)
    return np.float32(1) - picture if raw.inverted else picture
