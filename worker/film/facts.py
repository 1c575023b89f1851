"""The header facts that leave the decoder child, and what was odd about them."""

from __future__ import annotations

from worker.film import values
from worker.film.elements import Elements
from worker.film.normalise import NormalisedFilm
from worker.film.prepared import FilmFacts, Observation
from worker.film.reader import HEADER_TAGS, FilmHeader

_EXPECTED = (("modality", "modality"), ("body_part", "body part"), ("view_position", "view position"))


def facts_of(header: FilmHeader, elements: Elements, film: NormalisedFilm) -> tuple[FilmFacts, list[Observation]]:
    """Facts without names, record numbers and dates, and the observations on them."""
    observations = []
    found = elements.values.get
    _, contradictory = values.age_in_days(
        found(HEADER_TAGS["PatientAge"]), found(HEADER_TAGS["PatientBirthDate"]), found(HEADER_TAGS["StudyDate"])
    )
    if contradictory:
        observations.append(Observation("age_mismatch", None, "age, birth date and study date do not fit"))
    missing = [title for field, title in _EXPECTED if not getattr(header, field)]
    if missing:
        observations.append(Observation("header_incomplete", float(len(missing)), f"no {', no '.join(missing)}"))
    facts = FilmFacts(
        sop_class_uid=header.sop_class_uid,
        transfer_syntax_uid=header.transfer_syntax_uid,
        photometric_interpretation=header.photometric_interpretation,
        modality=header.modality,
        body_part=header.body_part,
        view_position=header.view_position,
        bits_stored=header.bits_stored,
        age_days=header.age_days,
        voi_policy=film.voi_policy,
        grey_mean=film.grey_mean,
        grey_spread=film.grey_spread,
    )
    return facts, observations
