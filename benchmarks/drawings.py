"""How well do two drawings of the lungs of one film agree?

    python benchmarks/drawings.py DIR      # the public films of children with V7's masks (--layout ped_cxr)

Some films are in the data set twice, each time with a drawing of its own. How far those differ says what a Dice
coefficient measured against one drawing is worth; it is no limit, because what lies between two drawings agrees better
with each than they do with each other. Printed are the pairs, the mean Dice coefficient with its 95 % interval over the
pairs, the lowest, and in how many pairs one drawing was made right after the other (their numbers are neighbours): most
likely by the same person, so that two people may agree less.
"""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from worker.bootstrap import means
from worker.metrics import Mask, overlap


def main() -> int:
    """Print the figures; exit code 1 if no film was drawn twice."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder with manifest.csv and mask224/")
    options = parser.parse_args()
    with (options.folder / "manifest.csv").open(newline="") as table:
        films = {row["name"]: row for row in csv.DictReader(table)}
    pairs = [
        (film, films[film["duplicate_of"]])
        for film in films.values()
        if film["duplicate_of"] in films and film["has_mask"] == films[film["duplicate_of"]]["has_mask"] == "1"
    ]
    if not pairs:
        print("No film was drawn twice.")
        return 1
    masks = options.folder / "mask224"
    found = np.array([overlap(*(drawn(masks, film["name"]) for film in pair)).dice for pair in pairs])
    (mean,) = means(found[:, np.newaxis]).intervals()
    neighbours = sum(abs(int(first["v7_id"]) - int(second["v7_id"])) == 1 for first, second in pairs)
    print(
        f"{len(pairs)} films drawn twice: Dice of both lungs {mean.value:.3f} ({mean.low:.3f}-{mean.high:.3f}), "
        f"lowest {found.min():.3f}; {neighbours} of them one right after the other"
    )
    return 0


def drawn(folder: Path, name: str) -> Mask:
    """Where the lungs were drawn."""
    return cv2.imread(str(folder / f"{name}.png"), cv2.IMREAD_GRAYSCALE) > 127


if __name__ == "__main__":
    raise SystemExit(main())
