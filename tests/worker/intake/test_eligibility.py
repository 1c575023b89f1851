from __future__ import annotations

import pydicom
import pytest
from intake_rows import header

from worker.intake.eligibility import OTHER_OBJECTS, other_object, refusal

STORAGE = "1.2.840.10008.5.1.4.1.1."
RADIOGRAPHS = ("1", "1.1", "7", "7.1", "7.2", "7.3", "7.4", "12.2", "12.2.1")


@pytest.mark.parametrize("suffix", RADIOGRAPHS)
def test_what_may_be_a_radiograph_goes_on(suffix: str) -> None:
    assert refusal(header(sop_class_uid=STORAGE + suffix)) is None


@pytest.mark.parametrize("uid", ["1.3.46.670589.11.0.0.12.1", "1.2.3", "1.2.840.113619.4.26"])
def test_private_and_unknown_classes_go_on(uid: str) -> None:
    assert refusal(header(sop_class_uid=uid)) is None


@pytest.mark.parametrize(
    "suffix",
    ["2", "2.1", "4", "6.1", "20", "128", "481.1", "88.11", "88.33", "11.1", "66.4", "104.1", "9.1.1", "1.2", "1.3",
     "13.1.3", "77.1.4", "12.1"],
)  # fmt: skip
def test_what_cannot_be_one_is_refused(suffix: str) -> None:
    found = refusal(header(sop_class_uid=STORAGE + suffix))
    assert found is not None and found.code == "NOT_A_RADIOGRAPH" and found.detail


def test_every_storage_class_of_the_standard_is_decided() -> None:
    """Of all storage classes pydicom knows, only radiographs, captures and fluoroscopy go on."""
    known = [uid for uid, entry in pydicom._uid_dict.UID_dictionary.items() if uid.startswith(STORAGE)]
    on = {uid.removeprefix(STORAGE) for uid in known if other_object(uid) is None}
    assert len(known) > 150
    assert on <= {*RADIOGRAPHS, "1.1.1"}


def test_a_standard_uid_that_is_no_storage_class_is_refused() -> None:
    assert other_object("1.2.840.10008.1.3.10") == "not an image"


def test_the_table_is_keyed_by_one_or_two_components() -> None:
    assert all(key.count(".") <= 1 for key in OTHER_OBJECTS)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"presentation_intent": "FOR PROCESSING"}, "FOR_PROCESSING"),
        ({"sop_class_uid": STORAGE + "1.1.1", "presentation_intent": ""}, "FOR_PROCESSING"),
        ({"number_of_frames": 2}, "MULTI_FRAME"),
        ({"samples_per_pixel": 3, "photometric_interpretation": "RGB"}, "COLOUR"),
        ({"samples_per_pixel": 3, "photometric_interpretation": "YBR_FULL_422"}, "COLOUR"),
        ({"sop_class_uid": STORAGE + "7.4", "number_of_frames": 12}, "MULTI_FRAME"),
    ],
)
def test_headers_that_are_refused(changes: dict[str, object], code: str) -> None:
    found = refusal(header(**changes))
    assert found is not None and found.code == code


@pytest.mark.parametrize(
    "changes",
    [
        {"modality": "CT", "sop_class_uid": STORAGE + "7"},
        {"sop_class_uid": STORAGE + "7", "samples_per_pixel": 3, "photometric_interpretation": "RGB"},
        {"view_position": "LL"},
        {"body_part": "HAND"},
        {"modality": ""},
        {"presentation_intent": ""},
        {"number_of_frames": 1},
    ],
)
def test_doubt_goes_on(changes: dict[str, object]) -> None:
    assert refusal(header(**changes)) is None
