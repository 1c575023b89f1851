"""What a film's header says it is: the witness of the eligibility rule.

Body Part Examined and View Position are optional, often typed by hand and often wrong
(PS3.3 C.7.3.1, C.8.11.5), so only clear words count and all else is silence. The tables
hold the defined terms of PS3.16 Annex L and the spellings sites use.
"""

from __future__ import annotations

import re
import unicodedata
from enum import StrEnum

from worker.film.prepared import FilmFacts


class Witness(StrEnum):
    """What the header claims."""

    FRONTAL_CHEST = "the header says frontal chest"
    SILENT = "the header does not say"
    LATERAL = "the header says lateral or oblique view"
    OTHER = "the header says another body part or modality"


#: Modalities that can hold a projection radiograph; anything else named is another thing.
RADIOGRAPH_MODALITIES = frozenset({"", "CR", "DX", "DR", "RG", "RF", "XA", "OT", "SC", "XR"})

#: Body parts that say nothing: no statement, or a film on which the chest is one part.
SILENT_BODY_PARTS = frozenset(
    {"", "UNKNOWN", "UNDEFINED", "DEFAULT", "NONE", "OTHER", "NA", "BODY", "WHOLEBODY", "TRUNK", "BABYGRAM"}
)

#: Word stems, asked in this order: a thoracic spine is no chest, a rib film shows one.
BODY_PART_STEMS: tuple[tuple[str, Witness], ...] = (
    ("SPINE", Witness.OTHER),
    ("COLUMNA", Witness.OTHER),
    ("THORACOLUMB", Witness.OTHER),
    ("CHEST", Witness.FRONTAL_CHEST),
    ("THORA", Witness.FRONTAL_CHEST),
    ("TORAX", Witness.FRONTAL_CHEST),
    ("TORAC", Witness.FRONTAL_CHEST),
    ("LUNG", Witness.FRONTAL_CHEST),
    ("PULMO", Witness.FRONTAL_CHEST),
    ("POUMON", Witness.FRONTAL_CHEST),
    ("CXR", Witness.FRONTAL_CHEST),
    ("HEART", Witness.FRONTAL_CHEST),
    ("胸", Witness.FRONTAL_CHEST),
    ("ГРУД", Witness.FRONTAL_CHEST),
    ("RIB", Witness.SILENT),
)

#: View Position words. Decubitus views are frontal projections of a patient lying on the side.
VIEWS: dict[str, Witness] = {
    **dict.fromkeys(("AP", "PA", "RLD", "LLD", "FRONTAL", "ANTEROPOSTERIOR", "POSTEROANTERIOR"), Witness.FRONTAL_CHEST),
    **dict.fromkeys(
        ("LL", "RL", "LAT", "LATERAL", "LLAT", "RLAT", "LEFTLATERAL", "RIGHTLATERAL", "LLO", "RLO", "OBLIQUE"),
        Witness.LATERAL,
    ),
}


def header_says(facts: FilmFacts) -> Witness:
    """What ``facts`` claim: another thing before a lateral view before a frontal chest.

    A chest without a view, or a view without a body part, is silence: half of all laterals
    come as CHEST.
    """
    body = _body_part(facts.body_part)
    if _letters(facts.modality) not in RADIOGRAPH_MODALITIES or body is Witness.OTHER:
        return Witness.OTHER
    view = VIEWS.get(_letters(facts.view_position), Witness.SILENT)
    if view is Witness.LATERAL:
        return Witness.LATERAL
    if view is Witness.FRONTAL_CHEST and body is Witness.FRONTAL_CHEST:
        return Witness.FRONTAL_CHEST
    return Witness.SILENT


def _body_part(text: str) -> Witness:
    word = _letters(text)
    if word in SILENT_BODY_PARTS:
        return Witness.SILENT
    return next((witness for stem, witness in BODY_PART_STEMS if stem in word), Witness.OTHER)


def _letters(text: str) -> str:
    """Upper-case letters only, accents removed: ``"Tórax "`` becomes ``"TORAX"``."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return re.sub(r"[\W\d_]+", "", plain).upper()
