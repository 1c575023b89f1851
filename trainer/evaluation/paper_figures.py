"""The papers' own figures, as printed, to stand beside ours.

They were measured on the papers' films, which are not public or not ours: nobody may read a
difference from them as better or worse. Every table that shows them says so (:data:`NOT_COMPARABLE`).
"""

from __future__ import annotations

from collections.abc import Mapping

from schema.findings import Finding
from trainer.recipe import Recipe

NOT_COMPARABLE = (
    "Figures marked *paper* are the paper's own, on the paper's own films. "
    "Ours come from other films: the two cannot be compared."
)

#: Which paper a recipe follows → how it is called in a report.
PAPER_TITLES: dict[str, str] = {
    "holste": "Holste et al., Multi-class semantic segmentation of pediatric chest radiographs",
    "novikov": "Novikov et al., Fully convolutional architectures for multi-class segmentation in chest radiographs",
    "maga": "Maga, Chest X-ray lung and heart segmentation based on minimal training sets",
    "wang": "Wang et al., Deep learning for automatic segmentation of chest X-ray",
    "pediatric_classifier": "the VinDr pediatric chest radiograph classifier paper",
}

#: Holste, Table 2: loss → mean Dice on 70 test films, background included, before post-processing.
HOLSTE_TABLE_2: dict[str, str] = {
    "w2-cce*": "0.832",
    "w3-cce*": "0.830",
    "w1-cce*": "0.829",
    "cce + gdl*": "0.828",
    "cce*": "0.828",
    "w2-cce": "0.825",
    "cce + gdl": "0.821",
    "w3-cce": "0.820",
    "cce": "0.815",
    "w1-cce": "0.814",
    "w3-gdl": "0.788",
    "w1-gdl": "0.787",
    "gdl": "0.784",
    "w2-gdl": "0.783",
}

#: Holste, Table 3: loss → films of 70 that fail after post-processing.
HOLSTE_TABLE_3: dict[str, dict[str, str]] = {
    "w2-cce*": {"missing_carina": "0", "disconnected_films": "6"},
    "cce": {"missing_carina": "0", "disconnected_films": "12"},
    "w2-gdl": {"missing_carina": "70", "disconnected_films": "24"},
}

#: Holste, Table 4: loss → mean Dice of 38 films of age 0-4 and 32 of age 5 and over.
HOLSTE_TABLE_4: dict[str, dict[str, str]] = {
    "w2-cce*": {"mean_dice_age_0_4": "0.830", "mean_dice_age_5_plus": "0.834"},
    "cce": {"mean_dice_age_0_4": "0.812", "mean_dice_age_5_plus": "0.820"},
    "w2-gdl": {"mean_dice_age_0_4": "0.781", "mean_dice_age_5_plus": "0.785"},
}

#: Holste, abstract: mean pixel accuracy of the best model.
HOLSTE_ACCURACY: dict[str, str] = {"w2-cce*": "0.938"}

#: Holste's films: tested on, of them of age 0-4, of age 5 and over.
HOLSTE_FILMS: dict[str, int] = {"all": 70, "age_0_4": 38, "age_5_plus": 32}

#: Classifier paper, Table 3: network → macro mean AUROC on validation and test part.
CLASSIFIER_TABLE_3: dict[str, dict[str, str]] = {
    "densenet121": {"mean_auroc_validation": "0.715 (0.693-0.737)", "mean_auroc": "0.696 (0.675-0.716)"},
    "densenet169": {"mean_auroc_validation": "0.721 (0.699-0.741)", "mean_auroc": "0.691 (0.672-0.711)"},
    "resnet101": {"mean_auroc_validation": "0.717 (0.696-0.737)", "mean_auroc": "0.700 (0.680-0.719)"},
    "ensemble": {"mean_auroc_validation": "0.733 (0.713-0.754)", "mean_auroc": "0.709 (0.690-0.729)"},
}

#: Classifier paper, Table 5: finding → AUROC, sensitivity, specificity, F1 of the ensemble on 777 films.
CLASSIFIER_TABLE_5: dict[str, tuple[str, str, str, str]] = {
    Finding.OTHER_OPACITY: ("0.703", "0.856", "0.373", "0.320"),
    Finding.RETICULONODULAR_OPACITY: ("0.739", "0.786", "0.559", "0.337"),
    Finding.PERIBRONCHOVASCULAR_INTERSTITIAL_OPACITY: ("0.706", "0.817", "0.522", "0.581"),
    Finding.BRONCHIAL_THICKENING: ("0.673", "0.627", "0.571", "0.297"),
    Finding.NO_FINDING: ("0.776", "0.668", "0.739", "0.586"),
    Finding.BRONCHITIS: ("0.691", "0.571", "0.69", "0.414"),
    Finding.BRONCHOPNEUMONIA: ("0.696", "0.725", "0.581", "0.361"),
    Finding.OTHER_DISEASE: ("0.669", "0.806", "0.445", "0.307"),
    Finding.BRONCHIOLITIS: ("0.638", "0.683", "0.496", "0.270"),
    Finding.PNEUMONIA: ("0.802", "0.682", "0.809", "0.422"),
}

#: The last row of that table, and its intervals as the abstract gives them.
CLASSIFIER_TABLE_5_MEAN: tuple[str, str, str, str] = (
    "0.709 (0.690-0.729)",
    "0.722 (0.694-0.750)",
    "0.579 (0.563-0.595)",
    "0.389 (0.373-0.405)",
)

_LOSSES: Mapping[str, str] = {"cross_entropy": "cce", "generalised_dice": "gdl", "cross_entropy_dice": "cce + gdl"}


def holste_label(recipe: Recipe) -> str:
    """The recipe's loss as Table 2 would call it: ``"w2-cce*"``, the star for saved copies."""
    weights = f"{recipe.loss.pixel_weights}-" if recipe.loss.pixel_weights else ""
    star = "*" if recipe.augmentation.saved.copies else ""
    return f"{weights}{_LOSSES.get(recipe.loss.name, recipe.loss.name)}{star}"
