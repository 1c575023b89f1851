"""How fast is a film decoded, beside pydicom with its default plugins?

    python benchmarks/decode.py                     # every transfer syntax, a phantom of 2500 x 2048, 12 bit
    python benchmarks/decode.py --syntax JPEG --rounds 20

Both start from the file's bytes in memory and end with the stored pixels as an array: our reader, guard and
decoder on one side, ``pydicom.dcmread(...).pixel_array`` on the other, in turns, in one process, on one
thread. (Uncompressed pixels are a view of the file with us: nothing is copied.) Medians; the ratio is that
of the medians. Both must give the same pixels, except where the syntax is lossy and the libraries round
differently: the largest difference is shown then. Where pydicom has no plugin on this machine, what it
asks for is shown instead: nothing is installed for the comparison.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from statistics import median

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import imagecodecs
import numpy as np
import pydicom
from dicom_files import JPEG, NATIVE_SYNTAXES, SYNTAXES, encode, make_dataset, to_bytes
from pydicom.pixels import get_decoder
from pydicom.uid import UID

from worker.film import codecs
from worker.film.elements import read_elements
from worker.film.pixels import PIXEL_TAGS, layout_of
from worker.phantom import make_phantom

ROWS, COLUMNS, BITS = 2500, 2048, 12


def film(syntax: str, rows: int, columns: int) -> bytes:
    """A phantom in ``syntax``, 12 bit; 8 bit where the syntax has no more."""
    bits = 8 if syntax == JPEG else BITS
    picture = make_phantom(1, rows=rows, columns=columns).image
    low, high = float(picture.min()), float(picture.max())
    levels = np.rint((picture - low) / (high - low) * ((1 << bits) - 1))
    return to_bytes(encode(make_dataset(levels.astype(np.uint8 if bits == 8 else np.uint16)), syntax))


def ours(data: bytes) -> np.ndarray:
    """The stored pixels as the worker reads them."""
    elements = read_elements(BytesIO(data), len(data), frozenset(PIXEL_TAGS.values()), whole=True)
    layout = layout_of(elements)
    return codecs.decode(elements, data if elements.inflated is None else elements.inflated, layout).samples


def theirs(data: bytes) -> np.ndarray:
    """The stored pixels as pydicom reads them."""
    return pydicom.dcmread(BytesIO(data)).pixel_array


def plugin(syntax: str) -> tuple[str, str]:
    """The plugin that pydicom takes, and what it asks for where it has none."""
    if syntax in NATIVE_SYNTAXES:
        return "numpy", ""
    decoder = get_decoder(UID(syntax))
    if decoder.is_available:
        return decoder.available_plugins[0], ""
    return "", f"no plugin here: {'; '.join(decoder.missing_dependencies)}"


def milliseconds(work: Callable[[bytes], np.ndarray], data: bytes) -> float:
    started = time.perf_counter()
    work(data)
    return 1000.0 * (time.perf_counter() - started)


def line(syntax: str, data: bytes, rounds: int) -> str:
    """One row of the table."""
    name = f"{codecs.SYNTAXES[syntax].title:34}{len(data) / 1e6:6.2f}"
    taken, asked = plugin(syntax)
    pixels, difference = ours(data), ""
    readers: list[Callable[[bytes], np.ndarray]] = [ours]
    if taken:
        try:
            apart = int(np.abs(pixels.astype(int) - theirs(data).astype(int)).max())
        except Exception as error:
            asked = f"{taken} refuses it: {str(error).splitlines()[-1].strip()}"
        else:
            if apart and not codecs.SYNTAXES[syntax].lossy:
                raise SystemExit(f"{codecs.SYNTAXES[syntax].title}: the pixels differ by up to {apart}")
            difference = f", pixels differ by up to {apart}" if apart else ""
            readers.append(theirs)
    times = [[milliseconds(reader, data) for reader in readers] for _ in range(rounds)]
    mine, *other = (median(column) for column in zip(*times, strict=True))
    if not other:
        return f"{name}{mine:9.1f}{'–':>9}{'–':>7}  {asked}"
    return f"{name}{mine:9.1f}{other[0]:9.1f}{other[0] / mine:7.1f}  {taken}{difference}"


def main() -> int:
    """Print the table; nothing is asked of it but that the pixels agree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--syntax", default="", help="only syntaxes whose name has this in it")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--columns", type=int, default=COLUMNS)
    options = parser.parse_args()
    print(
        f"{options.rows} x {options.columns}, medians of {options.rounds}; pydicom {pydicom.__version__}, "
        f"imagecodecs {imagecodecs.__version__}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    )
    print(f"{'':34}{'MB':>6}{'ours ms':>9}{'pydicom':>9}{'ratio':>7}")
    for syntax in SYNTAXES:
        if options.syntax.lower() in codecs.SYNTAXES[syntax].title.lower():
            print(line(syntax, film(syntax, options.rows, options.columns), options.rounds), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
