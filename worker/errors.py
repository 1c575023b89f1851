"""Every way a film can go wrong, in one table.

Each code says what kind of trouble it is, and so what the ledger does with it:

=============  ==========================================================
kind           what happens to the job
=============  ==========================================================
permanent      ``failed``: dead letter, this film only
ineligible     ``ineligible``: read well, but not a frontal chest film
transient      ``delayed``: tried again with backoff, capped
engine         the batch is split until the bad film is alone
=============  ==========================================================

Messages carry no patient identity and no path: the ledger knows which film it is,
and ``carina failed`` puts the two together for those who may see them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from schema.text import storable


class Kind(StrEnum):
    """What the ledger does with an error."""

    PERMANENT = "permanent"
    INELIGIBLE = "ineligible"
    TRANSIENT = "transient"
    ENGINE = "engine"


class Stage(StrEnum):
    """Where in a film's way it happened."""

    REGISTER = "register"
    READ = "read"
    DECODE = "decode"
    NORMALISE = "normalise"
    PREPROCESS = "preprocess"
    INFERENCE = "inference"
    FINDINGS = "findings"
    WRITE = "write"


@dataclass(frozen=True)
class CodeDefinition:
    """A code's kind, the stage it belongs to, what it means and what to do next."""

    kind: Kind
    stage: Stage
    meaning: str
    advice: str


def _permanent(stage: Stage, meaning: str, advice: str) -> CodeDefinition:
    return CodeDefinition(Kind.PERMANENT, stage, meaning, advice)


def _ineligible(stage: Stage, meaning: str, advice: str) -> CodeDefinition:
    return CodeDefinition(Kind.INELIGIBLE, stage, meaning, advice)


def _transient(stage: Stage, meaning: str, advice: str) -> CodeDefinition:
    return CodeDefinition(Kind.TRANSIENT, stage, meaning, advice)


_RESEND = "Send the film again from the archive."
_NOTHING = "Nothing to do: Carina reads frontal chest radiographs only."

CODES: dict[str, CodeDefinition] = {
    # The file itself
    "NOT_DICOM": _permanent(Stage.REGISTER, "The file is not DICOM.", "Nothing to do."),
    "EMPTY_FILE": _permanent(Stage.READ, "The file has no bytes.", _RESEND),
    "TRUNCATED_HEADER": _permanent(Stage.READ, "The DICOM header ends too early.", _RESEND),
    "BAD_HEADER": _permanent(Stage.READ, "The DICOM header cannot be parsed.", _RESEND),
    "MISSING_TAG": _permanent(
        Stage.READ, "A mandatory DICOM attribute is missing.", "Ask the modality's vendor; then send again."
    ),
    "BAD_VALUE": _permanent(
        Stage.READ,
        "A mandatory DICOM attribute has an impossible value.",
        "Ask the modality's vendor; then send again.",
    ),
    "FILE_TOO_LARGE": _permanent(
        Stage.READ,
        "The file, or what it inflates to, is larger than a radiograph can be.",
        "Check where the file comes from.",
    ),
    "NO_PERMISSION": _transient(
        Stage.READ, "The file may not be read by this user.", "Grant read permission, then: carina retry"
    ),
    "SOURCE_MISSING": _transient(
        Stage.READ,
        "The file is no longer where it was registered.",
        "Put it back or mount the share, then: carina retry",
    ),
    "SOURCE_CHANGED": _transient(
        Stage.READ, "The file changed while it was read.", "Submit it again when it is complete."
    ),
    "READ_ERROR": _transient(Stage.READ, "The disk or share gave an error.", "Check the storage, then: carina retry"),
    "DIRECTORY_LOOP": _permanent(
        Stage.REGISTER, "The folder contains itself through a link.", "Nothing to do: the loop is skipped."
    ),
    "BAD_ARCHIVE": _permanent(Stage.REGISTER, "The zip archive cannot be read.", "Make the archive again."),
    "WAITING": _transient(
        Stage.READ, "The film's own file is not read yet, so this one cannot be compared with it.", "Nothing to do."
    ),
    # Not our kind of picture
    "NOT_A_RADIOGRAPH": _ineligible(Stage.REGISTER, "The SOP class is not that of a projection radiograph.", _NOTHING),
    "MULTI_FRAME": _ineligible(Stage.REGISTER, "The object has more than one frame.", _NOTHING),
    "COLOUR": _ineligible(Stage.REGISTER, "The picture is in colour.", _NOTHING),
    "FOR_PROCESSING": _ineligible(
        Stage.REGISTER,
        "The object is FOR PROCESSING: raw detector data, not a film.",
        "Send the FOR PRESENTATION object.",
    ),
    "RULE_SKIPPED": _ineligible(
        Stage.REGISTER,
        "A rule of this site leaves the film out.",
        "Look which rule: carina rules test FILE. After a change of the rules submit the file again.",
    ),
    "NOT_A_CHEST": _ineligible(Stage.FINDINGS, "The picture shows no two lungs of plausible size and place.", _NOTHING),
    "LATERAL": _ineligible(Stage.FINDINGS, "The picture is a lateral view.", _NOTHING),
    # Pixels
    "NO_PIXEL_DATA": _permanent(Stage.DECODE, "The object has no pixel data.", _RESEND),
    "UNSUPPORTED_TRANSFER_SYNTAX": _permanent(
        Stage.DECODE, "No decoder for this transfer syntax.", "Convert the film, then submit the new file."
    ),
    "UNSUPPORTED_PIXEL_LAYOUT": _permanent(
        Stage.DECODE, "The pixel layout is not one of a radiograph.", "Ask the modality's vendor."
    ),
    "PICTURE_TOO_LARGE": _permanent(Stage.DECODE, "The header claims more pixels than a radiograph can have.", _RESEND),
    "TRUNCATED_PIXELS": _permanent(Stage.DECODE, "The pixel data ends too early.", _RESEND),
    "CODESTREAM_MISMATCH": _permanent(
        Stage.DECODE, "The compressed picture and the header disagree about its size.", _RESEND
    ),
    "DECODE_FAILED": _permanent(Stage.DECODE, "The decoder refused the pixel data.", _RESEND),
    "DECODE_TIMEOUT": _permanent(Stage.DECODE, "Decoding took longer than allowed.", _RESEND),
    "DECODE_MEMORY": _permanent(Stage.DECODE, "Decoding needs more memory than allowed.", _RESEND),
    "BLANK_PICTURE": _permanent(Stage.NORMALISE, "All pixels have the same value.", _RESEND),
    "PREPROCESS_FAILED": _permanent(
        Stage.PREPROCESS, "The film could not be prepared for the network.", "Report it with carina failed --json."
    ),
    # Machine
    "BUNDLE_MISSING": _transient(
        Stage.INFERENCE, "This machine lacks the files of the bundle.", "Copy or mount the bundle."
    ),
    "ENGINE_FAILED": CodeDefinition(
        Kind.ENGINE, Stage.INFERENCE, "The engine could not process this film.", "Run: carina doctor"
    ),
    "FINDINGS_FAILED": _permanent(
        Stage.FINDINGS, "Post-processing of this film failed.", "Report it with carina failed --json."
    ),
    "RESULT_REJECTED": _permanent(
        Stage.WRITE, "The database refused this film's result.", "Report it with carina failed --json."
    ),
    "DATABASE_UNAVAILABLE": _transient(
        Stage.WRITE, "The database does not answer.", "Check the database: carina doctor"
    ),
    "DISK_FULL": _transient(Stage.WRITE, "The disk is full.", "Free space; work resumes by itself."),
    "WORKER_CRASHED": _permanent(
        Stage.DECODE, "The process that read this film died each time.", "Report the film; nothing else was harmed."
    ),
    "TOO_MANY_ATTEMPTS": _permanent(
        Stage.READ, "Transient trouble did not go away in the allowed attempts.", "Fix the cause, then: carina retry"
    ),
}


class CarinaError(Exception):
    """Could not run at all: configuration, database, usage. Exit code 1.

    The message says what is wrong and what to do next.
    """


class MachineError(CarinaError):
    """This process cannot read any film: none is to blame, and it should end and give them back."""


class FilmError(Exception):
    """One film cannot go on.

    Parameters
    ----------
    code
        A key of :data:`CODES`.
    detail
        What was seen, for a person: numbers and attribute names, never a value that
        may identify a patient, never a path.
    """

    def __init__(self, code: str, detail: str = "") -> None:
        if code not in CODES:
            raise ValueError(f"unknown error code {code!r}")
        self.code = code
        # It may quote a file's own bytes, and it must be possible to write down what is wrong.
        self.detail = storable(detail)
        super().__init__(sentence(code, self.detail))

    @property
    def definition(self) -> CodeDefinition:
        """Kind, stage, meaning and advice of this error."""
        return CODES[self.code]

    @property
    def kind(self) -> Kind:
        """What the ledger does with it."""
        return self.definition.kind

    @property
    def stage(self) -> Stage:
        """Where it happened."""
        return self.definition.stage


def sentence(code: str, detail: str = "") -> str:
    """The code's meaning and what was seen, as one sentence for a person."""
    meaning = CODES[code].meaning
    return f"{meaning[:-1]}: {detail}." if detail else meaning


def advice(code: str) -> str:
    """What a person does next about ``code``."""
    return CODES[code].advice
