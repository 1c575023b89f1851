from __future__ import annotations

from itertools import product

import cv2
import numpy as np
import pytest

from schema.regions import HOLSTE_REGIONS, RegionDefinition
from worker.errors import CODES, Kind
from worker.findings.eligibility import TRUTH_TABLE, Picture, judge, look
from worker.findings.witness import Witness, header_says

HEADERS = {
    Witness.FRONTAL_CHEST: ("CHEST", "AP", "DX"),
    Witness.SILENT: ("", "", "DX"),
    Witness.LATERAL: ("CHEST", "LL", "DX"),
    Witness.OTHER: ("HIP", "AP", "DX"),
}


def one_lung(labels):
    labels[labels == 1] = 6
    return labels


def tiny_lungs(labels):
    lungs = np.isin(labels, (1, 2))
    labels[lungs] = 0
    labels[100:104, 60:64] = 2
    labels[100:104, 190:194] = 1
    return labels


def lateral(labels):
    """Two lungs on top of one another."""
    labels[:] = 0
    cv2.ellipse(labels, (120, 120), (50, 80), 0, 0, 360, 2, -1)
    cv2.ellipse(labels, (126, 120), (50, 80), 0, 0, 180, 1, -1)
    labels[40:245, 200:220] = 5
    return labels


def ragged(labels):
    for column in range(154, 220, 12):
        labels[70:195, column : column + 6] = 6
    return labels


def unequal(labels):
    labels[labels == 1] = 6
    cv2.ellipse(labels, (186, 120), (17, 33), 0, 0, 360, 1, -1)
    return labels


def mirrored(labels):
    return labels[:, ::-1].copy()


def nothing(labels):
    return np.zeros_like(labels)


def as_is(labels):
    return labels


PICTURES = {
    Picture.PLAUSIBLE: (as_is,),
    Picture.DOUBTFUL: (mirrored, one_lung, unequal, ragged),
    Picture.IMPLAUSIBLE: (nothing, tiny_lungs, lateral),
}

#: The rule in words, written down a second time.
EXPECTED = {
    (Picture.PLAUSIBLE, Witness.FRONTAL_CHEST): (None, set()),
    (Picture.PLAUSIBLE, Witness.SILENT): (None, set()),
    (Picture.PLAUSIBLE, Witness.LATERAL): (None, {"header_disagrees"}),
    (Picture.PLAUSIBLE, Witness.OTHER): (None, {"header_disagrees"}),
    (Picture.DOUBTFUL, Witness.FRONTAL_CHEST): (None, {"doubt"}),
    (Picture.DOUBTFUL, Witness.SILENT): (None, {"doubt"}),
    (Picture.DOUBTFUL, Witness.LATERAL): ("LATERAL", {"doubt"}),
    (Picture.DOUBTFUL, Witness.OTHER): ("NOT_A_CHEST", {"doubt"}),
    (Picture.IMPLAUSIBLE, Witness.FRONTAL_CHEST): ("NOT_A_CHEST", {"header_disagrees"}),
    (Picture.IMPLAUSIBLE, Witness.SILENT): ("NOT_A_CHEST", set()),
    (Picture.IMPLAUSIBLE, Witness.LATERAL): ("LATERAL", set()),
    (Picture.IMPLAUSIBLE, Witness.OTHER): ("NOT_A_CHEST", set()),
}


@pytest.mark.parametrize("witness", Witness)
@pytest.mark.parametrize(
    ("picture", "draw"), [(picture, draw) for picture, draws in PICTURES.items() for draw in draws]
)
def test_truth_table(picture, draw, witness, chest, finish, facts):
    header = facts(*HEADERS[witness])
    assert header_says(header) is witness
    _, segmentation, measurements = finish(draw(chest()))
    verdict = judge(segmentation, measurements, header)
    code, flags = EXPECTED[picture, witness]
    assert verdict.code == code
    assert verdict.eligible is (code is None)
    assert witness.value in verdict.detail
    doubt = {"left_right_swapped"} if draw is mirrored else {"chest_doubtful"}
    assert {flag.rule for flag in verdict.flags} == (flags - {"doubt"}) | (doubt if "doubt" in flags else set())


@pytest.mark.parametrize("witness", Witness)
def test_a_bundle_without_lungs_relies_on_the_header(witness, finish, facts):
    regions = tuple(RegionDefinition(i, name, name, (0, 0, 0)) for i, name in enumerate(("background", "heart")))
    labels = np.zeros((64, 64), np.uint8)
    labels[20:40, 20:40] = 1
    _, segmentation, measurements = finish(labels, regions=regions)
    verdict = judge(segmentation, measurements, facts(*HEADERS[witness]), regions)
    expected = {
        Witness.FRONTAL_CHEST: (None, []),
        Witness.SILENT: (None, ["chest_doubtful"]),
        Witness.LATERAL: ("LATERAL", []),
        Witness.OTHER: ("NOT_A_CHEST", []),
    }
    assert (verdict.code, [flag.rule for flag in verdict.flags]) == expected[witness]


def test_the_table_is_complete_and_its_codes_are_ineligible_ones():
    assert set(TRUTH_TABLE) == set(product(Picture, Witness))
    for outcome in TRUTH_TABLE.values():
        assert outcome.code is None or CODES[outcome.code].kind is Kind.INELIGIBLE


def test_done_without_a_flag_needs_a_plausible_picture_or_a_clear_header():
    for (picture, witness), outcome in TRUTH_TABLE.items():
        if outcome.code is None and not outcome.rules:
            assert picture in (Picture.PLAUSIBLE, Picture.DOUBTFUL) or witness is Witness.FRONTAL_CHEST


@pytest.mark.parametrize(
    ("draw", "words"),
    [(unequal, "ratio"), (ragged, "left lung"), (one_lung, "no left lung"), (mirrored, "swapped")],
)
def test_reasons_name_what_is_odd(draw, words, chest, finish, facts):
    _, segmentation, measurements = finish(draw(chest()))
    assert words in judge(segmentation, measurements, facts()).detail


@pytest.mark.parametrize(
    ("sure", "picture"), [(0.93, Picture.PLAUSIBLE), (0.5, Picture.DOUBTFUL), (0.3, Picture.IMPLAUSIBLE)]
)
def test_an_unsure_network_makes_doubt(sure, picture, chest, finish, probabilities_of):
    labels = chest()
    _, segmentation, measurements = finish(labels, probabilities_of(labels, sure=sure))
    assert look(segmentation, measurements, HOLSTE_REGIONS).picture is picture


def test_one_lung_without_a_midline_is_no_chest(chest, finish, facts):
    labels = chest()
    labels[np.isin(labels, (1, 5, 6))] = 0
    _, segmentation, measurements = finish(labels)
    assert judge(segmentation, measurements, facts()).code == "NOT_A_CHEST"


@pytest.mark.parametrize("size", [128, 512])
def test_the_grid_does_not_matter(size, chest, finish, facts):
    _, segmentation, measurements = finish(chest(size))
    assert judge(segmentation, measurements, facts()).flags == []
