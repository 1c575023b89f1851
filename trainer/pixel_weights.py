"""The pixel weight maps w1, w2 and w3 of Holste et al., section 2.2 and Figure 1.

The paper describes them in one sentence: w1 "produces a mask of blurred (enlarged) edges between classes,
then weights those pixels by inverse class frequency", w2 "generates a mask of blurred classes, then weights
those pixels by inverse class frequency", w3 is "like the second except it additionally weights blurred edges
three times more heavily than the rest of each class". Decided here:

- **Class frequency** is a class's share of all pixels of the *training set*: a film's own would make the
  weight of a carina depend on how large it was drawn, and be infinite where there is none.
- **Normalisation**: class c has the weight 1 / (C f_c), C the number of classes that occur. Its mean over
  the training set's pixels is 1, so background (ln about −1) and lungs (ln about 0) lie below the 0.5 at which
  Figure 1 is clipped, and weighted losses can be compared with unweighted ones.
- **A class that never occurs** in the training set is as heavy as the rarest that does.
- **Blurred classes**: each class's mask under a Gaussian, weighted by the class and summed, which is the
  Gaussian of the map of class weights. Its standard deviation is 0.03 of the picture's side (7.7 pixels of 256): a
  small spot under a Gaussian has the height area / 2πσ², so an average carina reaches
  1 / (2π · 0.03² · 8) = 22 whatever its size: ln 22 = 3.1, the "upwards of 3" of Figure 1's caption and 6.2
  times the clip. Half the width would give nine times. The blur mirrors at the border, which keeps the mean at 1.
- **Blurred (enlarged) edges**: pixels within 0.012 of the picture's side (3 pixels of 256, at least 1) of a pixel
  with a 4-neighbour of another class. A mask is yes or no, hence a dilation: w3 / w2 is then
  exactly 3 or 1, as the sentence has it. Small enough for the spine to keep an inside, large enough to cover a carina.
- **w1** is w2's map on the enlarged edges. Elsewhere w_n > 0 asks for a floor: the weight of the commonest class.
- **w3** is w2's map, three times as high on the enlarged edges, and not normalised again: the losses divide
  by the weights. At the carina it reaches ln 4.2, 8.4 times the clip, a little more than the caption's "6-8".
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt

from trainer.errors import DataError, RecipeError

Labels = npt.NDArray[np.uint8]
Weights = npt.NDArray[np.float32]
Method = Literal["w1", "w2", "w3"]

METHODS: tuple[Method, ...] = ("w1", "w2", "w3")

#: Standard deviation of the blur of the classes, as a share of the picture's side.
CLASS_BLUR = 0.03
#: How far edges are enlarged, as a share of the picture's side.
EDGE_REACH = 0.012
#: How much heavier w3 makes the enlarged edges.
EDGE_FACTOR = 3.0

#: Where Figure 1 clips the natural logarithm of a weight.
PICTURE_CLIP = 0.5
#: What is black in the picture: no weight of eight classes lies below 1/8.
PICTURE_BLACK = -math.log(8)

_CROSS = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))


def class_frequencies(label_maps: Iterable[Labels], classes: int) -> npt.NDArray[np.float64]:
    """Each class's share of all pixels.

    Parameters
    ----------
    label_maps
        The training films', each uint8 (H, W) with values below ``classes``.
    classes
        How many classes there are.

    Returns
    -------
    float64 of shape (classes,), summing to 1; 0 for a class that never occurs.

    Raises
    ------
    DataError
        There are no label maps, or one has a value that is no class.
    """
    counts = np.zeros(classes, np.int64)
    for number, labels in enumerate(label_maps):
        found = np.bincount(labels.ravel(), minlength=classes)
        if len(found) > classes:
            raise DataError(
                f"Label map {number} of the training part has the value {len(found) - 1}, but data.regions names "
                f"{classes} regions (0 to {classes - 1}): correct the map, or name the region."
            )
        counts += found
    if not counts.any():
        raise DataError("The training part has no label maps, so pixel weights have no class frequencies.")
    frequencies: npt.NDArray[np.float64] = counts / counts.sum()
    return frequencies


def pixel_weights(labels: Labels, frequencies: npt.NDArray[np.float64], method: Method) -> Weights:
    """A film's weight map.

    Parameters
    ----------
    labels
        uint8 (H, W), values below the number of classes.
    frequencies
        (classes,), from :func:`class_frequencies`.
    method
        ``"w1"``, ``"w2"`` or ``"w3"``.

    Returns
    -------
    float32 (H, W), every weight at least that of the commonest class, hence above 0.

    Raises
    ------
    RecipeError
        Unknown method.
    """
    if method not in METHODS:
        raise RecipeError(f"loss.pixel_weights is {method!r}: it must be w1, w2 or w3.")
    side = math.sqrt(labels.size)
    of_class = _class_weights(frequencies)
    floor = of_class.min()
    blurred = cv2.GaussianBlur(of_class[labels], (0, 0), CLASS_BLUR * side, borderType=cv2.BORDER_REFLECT)
    weights: Weights = np.maximum(blurred, floor).astype(
        np.float32, copy=False
    )  # rounding may leave a pixel a hair below
    if method == "w1":
        weights[~enlarged_edges(labels)] = floor
    elif method == "w3":
        weights[enlarged_edges(labels)] *= EDGE_FACTOR
    return weights


def enlarged_edges(labels: Labels) -> npt.NDArray[np.bool_]:
    """Pixels (H, W) within :data:`EDGE_REACH` of a pixel with a 4-neighbour of another class."""
    edges = (cv2.dilate(labels, _CROSS) != cv2.erode(labels, _CROSS)).astype(np.uint8)
    reach = max(1, round(EDGE_REACH * math.sqrt(labels.size)))
    down, across = np.mgrid[-reach : reach + 1, -reach : reach + 1]  # cv2's own ellipses are not quite discs
    disc = (down**2 + across**2 <= reach**2).astype(np.uint8)
    return np.asarray(cv2.dilate(edges, disc) > 0)


def weight_picture(weights: Weights) -> npt.NDArray[np.uint8]:
    """Weights (H, W) as Figure 1 shows them: natural logarithm, clipped at 0.5 (white); black is ln 1/8."""
    shown = (np.log(weights) - PICTURE_BLACK) / (PICTURE_CLIP - PICTURE_BLACK)
    return np.round(255 * np.clip(shown, 0, 1)).astype(np.uint8)


def figure_one(labels: Labels, frequencies: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    """Holste et al., Figure 1, of one film: w1, w2 and w3 side by side, (H, 3 W + 2 gaps), gaps white."""
    gap = np.full((labels.shape[0], max(1, labels.shape[1] // 64)), 255, np.uint8)
    first, second, third = (weight_picture(pixel_weights(labels, frequencies, method)) for method in METHODS)
    return np.hstack([first, gap, second, gap, third])


def _class_weights(frequencies: npt.NDArray[np.float64]) -> Weights:
    """1 / (C f) for each class, float32 (classes,)."""
    occurring = frequencies[frequencies > 0]
    shares = np.where(frequencies > 0, frequencies, occurring.min())
    return (1 / (len(occurring) * shares)).astype(np.float32)
