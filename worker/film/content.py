"""The content hash: two files have the same one exactly when they show the same film.

SHA-256 over the stored values (little-endian, so every lossless transfer syntax and byte
order gives the same) and over what gives them meaning: size, bits, sign, photometric
interpretation, modality LUT or rescale, patient orientation. For a lossy syntax the encoded
frame stands in for the values, because decoders need not agree on those to the last bit.
"""

from __future__ import annotations

import hashlib
import json

import numpy as np

from worker.film import values
from worker.film.codecs import Picture
from worker.film.elements import Elements
from worker.film.geometry import PATIENT_ORIENTATION
from worker.film.pixels import PixelLayout
from worker.film.rescale import Rescale
from worker.film.stored import StoredPicture


def content_hash(
    picture: Picture, stored: StoredPicture, layout: PixelLayout, rescale: Rescale, elements: Elements
) -> str:
    """SHA-256 of a film's canonical content, 64 hex digits.

    Parameters
    ----------
    picture, stored
        The decoded samples and their stored values.
    layout, rescale, elements
        What the header says about them.
    """
    meaning = {
        "rows": layout.rows,
        "columns": layout.columns,
        "bits": stored.bits,
        "signed": stored.signed,
        "photometric": stored.photometric,
        "orientation": values.codes(elements.values.get(PATIENT_ORIENTATION)),
        "slope": rescale.slope,
        "intercept": rescale.intercept,
        "table": None if rescale.table is None else [rescale.table.first, rescale.table.entries.tolist()],
        "lossy": picture.frame is not None,
    }
    digest = hashlib.sha256(json.dumps(meaning, sort_keys=True).encode())
    if picture.frame is not None:
        # Fragments are padded to an even length, and differently when a file is rewritten.
        digest.update(picture.frame.rstrip(b"\0\xff"))
    else:
        digest.update(np.ascontiguousarray(stored.pixels, "<i2" if stored.signed else "<u2").data)
    return digest.hexdigest()
