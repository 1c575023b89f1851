"""The odd but survivable things reading can see: every rule name and what it means."""

from __future__ import annotations

from typing import NamedTuple


class ObservationRule(NamedTuple):
    """A rule's name as flags carry it, and its meaning for a person."""

    name: str
    meaning: str


OBSERVATION_RULES: tuple[ObservationRule, ...] = (
    ObservationRule("bad_rescale", "The rescale slope is negative, zero or unreadable."),
    ObservationRule("polarity_conflict", "Presentation LUT shape and photometric interpretation disagree."),
    ObservationRule("voi_fallback", "The header gives no usable window or VOI LUT: percentiles were used."),
    ObservationRule("voi_clipped", "The header's window clips most of the picture: percentiles were used."),
    ObservationRule("bits_stored_too_small", "Pixels use more bits than the header declares."),
    ObservationRule("orientation_mirrored", "The stored picture is mirrored, upside down or rotated."),
    ObservationRule("colour_as_grey", "The picture is stored in colour with three equal channels."),
    ObservationRule("decode_damage_suspected", "The decoded picture has breaks no film shows: bytes may be corrupted."),
    ObservationRule("age_mismatch", "Age, birth date and study date contradict each other."),
    ObservationRule("spacing_invalid", "The header gives a pixel spacing that is not a positive length."),
    ObservationRule("header_incomplete", "Modality, body part or view position is missing."),
    ObservationRule("border_masked", "A uniform border was left out of all statistics."),
)
