from __future__ import annotations

import pytest

from worker.findings.witness import Witness, header_says


@pytest.mark.parametrize(
    ("body_part", "view", "modality", "expected"),
    [
        ("CHEST", "AP", "DX", Witness.FRONTAL_CHEST),
        ("chest ", "pa", "CR", Witness.FRONTAL_CHEST),
        ("Tórax", "AP", "", Witness.FRONTAL_CHEST),
        ("PORT_CHEST", "LLD", "CR", Witness.FRONTAL_CHEST),
        ("CHESTABDOMEN", "AP", "DX", Witness.FRONTAL_CHEST),
        ("CHEST", "", "DX", Witness.SILENT),
        ("CHEST", "STRANGE", "DX", Witness.SILENT),
        ("", "AP", "DX", Witness.SILENT),
        ("", "", "", Witness.SILENT),
        ("RIBCAGE", "", "DX", Witness.SILENT),
        ("WHOLEBODY", "AP", "DX", Witness.SILENT),
        ("CHEST", "LL", "DX", Witness.LATERAL),
        ("", "LATERAL", "CR", Witness.LATERAL),
        ("CHEST", "RL", "DX", Witness.LATERAL),
        ("CHEST", "RLO", "DX", Witness.LATERAL),
        ("HIP", "", "CR", Witness.OTHER),
        ("EXTREMITY", "AP", "CR", Witness.OTHER),
        ("HAND", "LL", "CR", Witness.OTHER),
        ("Becken", "AP", "CR", Witness.OTHER),
        ("TSPINE", "AP", "CR", Witness.OTHER),
        ("THORACIC SPINE", "AP", "CR", Witness.OTHER),
        ("CHEST", "AP", "CT", Witness.OTHER),
        ("CHEST", "AP", "MG", Witness.OTHER),
    ],
)
def test_header_says(body_part, view, modality, expected, facts):
    assert header_says(facts(body_part, view, modality)) is expected
