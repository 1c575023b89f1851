"""The failure flags as data: what each rule is called, looks at, tolerates and tells people.

A rule's ``version`` rises whenever its meaning or one of its numbers changes, because flags
of different versions must not be counted together. Lengths and areas are fractions of the
film, so they hold on every grid. Numbers are generous: films of newborns and of adults,
tightly collimated or not, all come the same way.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from schema.regions import MERGED, Region
from worker.film.observations import OBSERVATION_RULES

YEAR_DAYS = 365.25


class Rule(StrEnum):
    """Names of the rules evaluated here; ``failure_flag.rule`` in the database."""

    HOLSTE_FAILURE = "holste_failure"
    MISSING_REGION = "missing_region"
    DISCONNECTED_REGION = "disconnected_region"
    INTERRUPTED_REGION = "interrupted_region"
    CARINA_THRESHOLD_LOWERED = "carina_threshold_lowered"
    CARINA_OUT_OF_RANGE = "carina_out_of_range"
    AREA_OUT_OF_RANGE = "area_out_of_range"
    LEFT_RIGHT_SWAPPED = "left_right_swapped"
    LOW_CONFIDENCE = "low_confidence"
    ENSEMBLE_DISAGREEMENT = "ensemble_disagreement"
    CHEST_DOUBTFUL = "chest_doubtful"
    HEADER_DISAGREES = "header_disagrees"


@dataclass(frozen=True)
class FlagRule:
    """What people need to know about a rule.

    ``sentence`` is a format template over ``region`` (the region's title), ``value`` and
    ``threshold``; ``advice`` says what to do about it. A ``notice`` asks nothing of anybody: it is
    kept, but the film does not count as flagged for it.
    """

    version: int
    sentence: str
    advice: str
    notice: bool = False


_LOOK = "Look at the masks before using them."
_CARINA = "Check the carina's place on the film before measuring from it."
_HEADER = "Correct the header at the modality or archive, or ignore the film."

RULES: dict[str, FlagRule] = {
    Rule.HOLSTE_FAILURE: FlagRule(
        2,
        "The masks are not anatomically sound: {value:.0f} region(s) missing, in pieces or interrupted",
        "Do not use the masks of this film without correcting them.",
    ),
    Rule.MISSING_REGION: FlagRule(1, "{region} is missing", _LOOK),
    Rule.DISCONNECTED_REGION: FlagRule(2, "{region} is in {value:.0f} separate pieces", _LOOK),
    Rule.INTERRUPTED_REGION: FlagRule(
        2, "{region} is interrupted by another region over {value:.1%} of its area", _LOOK
    ),
    Rule.CARINA_THRESHOLD_LOWERED: FlagRule(
        1, "The carina was found only with its threshold lowered to {value:g}", _CARINA
    ),
    Rule.CARINA_OUT_OF_RANGE: FlagRule(
        1, "The carina covers {value:.0f} pixels; the limit on this grid is {threshold:g}", _CARINA
    ),
    Rule.AREA_OUT_OF_RANGE: FlagRule(
        1, "{region} covers {value:.2%} of the film; the limit at this age is {threshold:.2%}", _LOOK
    ),
    Rule.LEFT_RIGHT_SWAPPED: FlagRule(
        1,
        "{region} lies on the wrong side of its partner: the film may be mirrored",
        "Compare with the side marker on the film before using left and right.",
    ),
    Rule.LOW_CONFIDENCE: FlagRule(
        1,
        "The network is unsure: mean confidence inside the thorax {value:.2f}, expected at least {threshold:.2f}",
        _LOOK,
    ),
    Rule.ENSEMBLE_DISAGREEMENT: FlagRule(
        1, "The classifiers disagree by up to {value:.2f}", "Read this film's finding scores with care."
    ),
    Rule.CHEST_DOUBTFUL: FlagRule(
        1, "The picture is doubtful as a frontal chest radiograph", "Check that this is a frontal chest radiograph."
    ),
    Rule.HEADER_DISAGREES: FlagRule(1, "Header and picture disagree about what this is", _HEADER),
}

#: What to do about what was seen while reading the file, where more than a look is called for.
_INPUT_ADVICE = {
    "decode_damage_suspected": "Look at the film; if it shows breaks or blocks, send it again.",
    "polarity_conflict": "Check that bone is bright on the film as shown.",
    "orientation_mirrored": "Compare with the side marker on the film before using left and right.",
    "border_masked": "Nothing to do.",
    "header_incomplete": "Nothing to do; the picture decided.",
}
_NOTICES = frozenset({"border_masked", "header_incomplete"})

RULES |= {
    rule.name: FlagRule(
        1,
        rule.meaning.rstrip("."),
        _INPUT_ADVICE.get(rule.name, "Look at the film before using it."),
        notice=rule.name in _NOTICES,
    )
    for rule in OBSERVATION_RULES
}


def is_notice(rule: str) -> bool:
    """Whether a flag of this rule asks nothing of anybody."""
    return RULES.get(rule, UNKNOWN_RULE).notice


#: For an observation the table does not know: a newer reader must not lose its warnings.
UNKNOWN_RULE = FlagRule(1, "Noticed while reading the film: {rule}", "Look at the film before using its results.")

# Disconnected (Holste, section 2.3: more than one component)

#: Regions that lie over another in the projection, so that its pieces on either side belong
#: together: the mediastinum continues behind the spine and around the carina. The one place
#: where our count departs from the paper's words, which would call a correct mask broken.
#: Post-processing joins the same pieces.
CONTINUES_BEHIND: dict[str, tuple[str, ...]] = {
    Region.MEDIASTINUM: (Region.SPINE, Region.CARINA),
    Region.SPINE: (Region.CARINA,),
    # A lung's apex lies above its clavicle.
    Region.LEFT_LUNG: (Region.LEFT_CLAVICLE, Region.CLAVICLES),
    Region.RIGHT_LUNG: (Region.RIGHT_CLAVICLE, Region.CLAVICLES),
    Region.LUNGS: (Region.LEFT_CLAVICLE, Region.RIGHT_CLAVICLE, Region.CLAVICLES),
}

#: Before clean-up a piece or an interruption counts from this share of its region on. Networks leave specks of a few
#: pixels on most films, and what clean-up takes away for good needs nobody's look unless it is a part of the region.
#: The paper counts failures on cleaned masks only; there every piece counts.
RAW_FRACTION = 0.05

#: Pieces that a sound mask may have of a region; one where nothing is said.
SOUND_PIECES: dict[str, int] = {name: len(parts) for name, parts in MERGED.items()}

# Interrupted (Holste, section 2.3: "in an objectively morphologically inaccurate manner")


class Axis(StrEnum):
    """The direction in which a region's parts lie on both sides of the intruder."""

    VERTICAL = "vertical"
    HORIZONTAL = "horizontal"


@dataclass(frozen=True)
class Interruption:
    """``intruder`` may not lie between parts of ``region`` along ``axis``."""

    region: str
    intruder: str
    axis: Axis


#: Least area between a region's parts, as a fraction of the region's own area. Of 761 children's lungs that people
#: drew, with the other regions derived from them, one in a hundred reaches 1 % and one in a thousand 2 %.
INTERRUPTION_FRACTION = 0.02

_BOTH = (Axis.VERTICAL, Axis.HORIZONTAL)
_VERTICAL = (Axis.VERTICAL,)
_HORIZONTAL = (Axis.HORIZONTAL,)

#: Region → what may not interrupt it, and along which axes. Absent pairs are anatomy: the
#: diaphragm's dome lies between two recesses of one lung in a row, the heart between upper
#: and lower lung in a column, and neighbours lie in the bow of a bent spine (a spine cut
#: through is in pieces and flagged as that).
_INTERRUPTED_BY: dict[str, tuple[tuple[str, tuple[Axis, ...]], ...]] = {
    Region.LEFT_LUNG: (
        (Region.RIGHT_LUNG, _BOTH),
        (Region.RIGHT_SUBDIAPHRAGM, _BOTH),
        (Region.LEFT_SUBDIAPHRAGM, _VERTICAL),
        (Region.SPINE, _HORIZONTAL),
        (Region.MEDIASTINUM, _HORIZONTAL),
        (Region.HEART, _HORIZONTAL),
        (Region.RIGHT_CLAVICLE, _BOTH),
        (Region.BACKGROUND, _BOTH),
    ),
    Region.RIGHT_LUNG: (
        (Region.LEFT_LUNG, _BOTH),
        (Region.LEFT_SUBDIAPHRAGM, _BOTH),
        (Region.RIGHT_SUBDIAPHRAGM, _VERTICAL),
        (Region.SPINE, _HORIZONTAL),
        (Region.MEDIASTINUM, _HORIZONTAL),
        (Region.HEART, _HORIZONTAL),
        (Region.LEFT_CLAVICLE, _BOTH),
        (Region.BACKGROUND, _BOTH),
    ),
    Region.LEFT_SUBDIAPHRAGM: (
        (Region.RIGHT_SUBDIAPHRAGM, _BOTH),
        (Region.LEFT_LUNG, _VERTICAL),
        (Region.RIGHT_LUNG, _BOTH),
        (Region.SPINE, _HORIZONTAL),
    ),
    Region.RIGHT_SUBDIAPHRAGM: (
        (Region.LEFT_SUBDIAPHRAGM, _BOTH),
        (Region.RIGHT_LUNG, _VERTICAL),
        (Region.LEFT_LUNG, _BOTH),
        (Region.SPINE, _HORIZONTAL),
    ),
    Region.MEDIASTINUM: ((Region.LEFT_LUNG, _HORIZONTAL), (Region.RIGHT_LUNG, _HORIZONTAL)),
    Region.HEART: (
        (Region.LEFT_LUNG, _HORIZONTAL),
        (Region.RIGHT_LUNG, _HORIZONTAL),
        (Region.LUNGS, _HORIZONTAL),
        (Region.LEFT_CLAVICLE, _BOTH),
        (Region.RIGHT_CLAVICLE, _BOTH),
        (Region.CLAVICLES, _BOTH),
    ),
    Region.LEFT_CLAVICLE: ((Region.RIGHT_CLAVICLE, _BOTH), (Region.HEART, _BOTH)),
    Region.RIGHT_CLAVICLE: ((Region.LEFT_CLAVICLE, _BOTH), (Region.HEART, _BOTH)),
}

INTERRUPTIONS: tuple[Interruption, ...] = tuple(
    Interruption(region, intruder, axis)
    for region, pairs in _INTERRUPTED_BY.items()
    for intruder, axes in pairs
    for axis in axes
)

#: What else lies between the parts of a lung. Without any of these in its region set a bundle calls it
#: background, which then cannot be told from what does not belong there.
BETWEEN_LUNG_PARTS: tuple[str, ...] = (Region.MEDIASTINUM, Region.LEFT_SUBDIAPHRAGM, Region.RIGHT_SUBDIAPHRAGM)

#: Classes that must be disconnected or interrupted to call the film a failure.
HOLSTE_BROKEN_CLASSES = 2

# Areas by age


@dataclass(frozen=True)
class AgeBand:
    """Reasonable areas as fractions of the film (smallest, largest) below ``until_days`` of age."""

    name: str
    until_days: float
    areas: dict[str, tuple[float, float]]


#: The same at every age: hearts of newborns are large on small films, clavicles are cut off or lie on end.
_HEART, _CLAVICLE = (0.01, 0.30), (0.0005, 0.05)
#: Of both lungs, on films that show anything else at all.
_BOTH_LUNGS_AT_MOST = 0.75


def _areas(
    lung: tuple[float, float],
    subdiaphragm: tuple[float, float],
    spine: tuple[float, float],
    mediastinum: tuple[float, float],
) -> dict[str, tuple[float, float]]:
    return {
        Region.LEFT_LUNG: lung,
        Region.RIGHT_LUNG: lung,
        Region.LEFT_SUBDIAPHRAGM: subdiaphragm,
        Region.RIGHT_SUBDIAPHRAGM: subdiaphragm,
        Region.SPINE: spine,
        Region.MEDIASTINUM: mediastinum,
        Region.HEART: _HEART,
        Region.LEFT_CLAVICLE: _CLAVICLE,
        Region.RIGHT_CLAVICLE: _CLAVICLE,
        Region.LUNGS: (2 * lung[0], _BOTH_LUNGS_AT_MOST),
        Region.CLAVICLES: (2 * _CLAVICLE[0], 2 * _CLAVICLE[1]),
    }


#: In order of age. Newborns are often imaged from chin to pelvis: small lungs, much abdomen.
#: Hand-drawn lungs of films at 1 to 5 years cover 8.6-36 % of the film each.
AGE_BANDS: tuple[AgeBand, ...] = (
    AgeBand("under 1 year", 1 * YEAR_DAYS, _areas((0.02, 0.40), (0.002, 0.40), (0.004, 0.20), (0.01, 0.35))),
    AgeBand("1 to 4 years", 5 * YEAR_DAYS, _areas((0.03, 0.40), (0.002, 0.30), (0.004, 0.18), (0.01, 0.35))),
    AgeBand("5 to 15 years", 16 * YEAR_DAYS, _areas((0.04, 0.40), (0.002, 0.25), (0.004, 0.15), (0.01, 0.35))),
    AgeBand("16 years and over", float("inf"), _areas((0.04, 0.42), (0.001, 0.25), (0.003, 0.15), (0.01, 0.40))),
)

#: For films whose header gives no age: whatever is reasonable at some age.
AGE_UNKNOWN = AgeBand("age unknown", float("inf"), _areas((0.02, 0.42), (0.001, 0.40), (0.003, 0.20), (0.01, 0.40)))

# Sides, confidence, agreement

#: (patient's left, patient's right): the left one belongs at the image's right.
SIDE_PAIRS: tuple[tuple[str, str], ...] = (
    (Region.LEFT_LUNG, Region.RIGHT_LUNG),
    (Region.LEFT_SUBDIAPHRAGM, Region.RIGHT_SUBDIAPHRAGM),
    (Region.LEFT_CLAVICLE, Region.RIGHT_CLAVICLE),
)

#: Least mean of the winning class's probability over all pixels that are not background.
LOW_CONFIDENCE = 0.7

#: Difference between the members' highest and lowest probability from which they disagree.
ENSEMBLE_SPREAD = 0.4
