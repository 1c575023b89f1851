"""The words that the tables know: states, kinds, lanes, sources, cohorts and periods."""

from __future__ import annotations

from enum import StrEnum


class ArrivalState(StrEnum):
    """What became of a file that came."""

    INSTANCE = "instance"
    UNVERIFIED = "unverified"
    DUPLICATE = "duplicate"
    CONFLICT = "conflict"
    ALIAS = "alias"
    REJECTED = "rejected"
    NOT_DICOM = "not_dicom"


class JobState(StrEnum):
    """Where a film stands. ``done`` and ``ineligible`` are final.

    ::

        register → ready → leased → done
                     ▲       ├──→ ineligible
                     │       ├──→ delayed → ready
                     │       ├──→ failed → (retry) ready
                     │       ├──→ cancelled
                     └───────┘ lease expired
    """

    READY = "ready"
    LEASED = "leased"
    DONE = "done"
    INELIGIBLE = "ineligible"
    DELAYED = "delayed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class JobKind(StrEnum):
    """``process`` makes results; ``verify`` finds out what an unverified arrival is.

    ``shadow`` makes results with a bundle that is not in service. Nobody is shown them unless
    that bundle is promoted: then the job is an ordinary one.
    """

    PROCESS = "process"
    VERIFY = "verify"
    SHADOW = "shadow"


class LabelValue(StrEnum):
    """What a reader says of a finding on a film."""

    PRESENT = "present"
    ABSENT = "absent"
    UNCERTAIN = "uncertain"


class LabelSource(StrEnum):
    """Why this film was given to a reader.

    Only ``consecutive`` and ``random`` films are like those of the night: what is measured on films that were
    chosen because a network and a reader disagreed (``disagreement``), or for another reason, flatters or slanders.
    """

    CONSECUTIVE = "consecutive"
    RANDOM = "random"
    DISAGREEMENT = "disagreement"
    OTHER = "other"


class RebuildState(StrEnum):
    """How far a rebuild is: ``failed`` needs a person, ``running`` goes on whoever died over it."""

    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"


class Cohort(StrEnum):
    """By what films are parted where performance is tracked; ``all`` are not parted."""

    ALL = "all"
    AGE = "age"
    SEX = "sex"
    VIEW_POSITION = "view_position"
    STATION = "station"
    LANE = "lane"


class Period(StrEnum):
    """Which films a tracked number is about: those that came in so many days before its end, or since promotion."""

    WEEK = "7d"
    MONTH = "30d"
    QUARTER = "90d"
    SINCE_PROMOTION = "since_promotion"


class DeliveryState(StrEnum):
    """Where an output stands on its way to a destination. ``sent`` and ``abandoned`` are final.

    ::

        published result → ready → leased → sent
                             ▲       ├──→ delayed → ready     trouble with this output, backoff, capped
                             │       ├──→ failed → (resend) ready
                             │       ├──→ abandoned           nobody wants it any more: see its code
                             └───────┘ lease expired, or the destination is away
    """

    READY = "ready"
    LEASED = "leased"
    DELAYED = "delayed"
    SENT = "sent"
    FAILED = "failed"
    ABANDONED = "abandoned"


class DestinationKind(StrEnum):
    """How a destination is spoken to: C-STORE over DICOM's own protocol, or STOW-RS over HTTP."""

    DICOM = "dicom"
    DICOMWEB = "dicomweb"


class Lane(StrEnum):
    """Who waits: ``icu`` films are claimed before ``archive`` films."""

    ICU = "icu"
    ARCHIVE = "archive"


#: Lane → ``job.priority``; smaller is claimed first.
PRIORITY: dict[str, int] = {Lane.ICU: 0, Lane.ARCHIVE: 10}
#: ``job.priority`` of shadow jobs, behind everything else.
SHADOW_PRIORITY = 20
