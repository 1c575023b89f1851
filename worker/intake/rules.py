"""Which films does this site want processed?

``CARINA_RULES`` names a TOML file with an ordered list of rules. The first rule whose conditions
all hold decides; where none does, ``otherwise`` decides (``"process"`` unless the file says
``"skip"``). Without a file every film is processed.

::

    [[rule]]
    name = "adults"
    decision = "skip"
    reason = "adults are read elsewhere"
    age = { at_least = "18Y" }

    [[rule]]
    name = "intensive care"
    decision = "process"
    station = ["ICU*", "NICU*"]

=================  ===========================================================================
condition          holds if a pattern fits
=================  ===========================================================================
``modality``       Modality (0008,0060)
``body_part``      BodyPartExamined (0018,0015)
``view_position``  ViewPosition (0018,5101)
``station``        StationName (0008,1010)
``manufacturer``   Manufacturer (0008,0070)
``description``    StudyDescription (0008,1030) or SeriesDescription (0008,103E)
``calling_ae``     the AE title of who sent the film to ``carina listen``
``lane``           the lane the film joins
``age``            at the study: ``{ at_least = "28D", below = "18Y" }``, either may be left out
=================  ===========================================================================

A pattern is text in which ``*``, ``?`` and ``[...]`` mean what they mean in a shell; case does not
matter; of a list of patterns one is enough. A condition on what the film does not say fails, so that
the next rule is asked; with ``when_missing = "match"`` the rule takes it as fulfilled.

Descriptions are read, compared and forgotten: they may name the patient.
"""

from __future__ import annotations

import difflib
import fnmatch
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

from worker.errors import CarinaError
from worker.film.reader import FilmHeader
from worker.intake.eligibility import Refusal
from worker.settings import Settings

#: The code of a film that a rule leaves out (:data:`worker.errors.CODES`).
RULE_SKIPPED = "RULE_SKIPPED"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A film about which the rules are asked; ``calling_ae`` is "" unless it came over the network."""

    header: FilmHeader
    lane: str = ""
    calling_ae: str = ""


#: Condition → what the film says there; "" stands for nothing.
TEXTS: dict[str, Callable[[Candidate], tuple[str, ...]]] = {
    "modality": lambda film: (film.header.modality,),
    "body_part": lambda film: (film.header.body_part,),
    "view_position": lambda film: (film.header.view_position,),
    "station": lambda film: (film.header.station_name,),
    "manufacturer": lambda film: (film.header.manufacturer,),
    "description": lambda film: (film.header.study_description, film.header.series_description),
    "calling_ae": lambda film: (film.calling_ae,),
    "lane": lambda film: (film.lane,),
}
#: What must not be shown: it may name the patient.
_UNSHOWN = frozenset({"description"})
_RULE_KEYS = frozenset({"name", "decision", "reason", "when_missing", "age", *TEXTS})
_AGE_KEYS = frozenset({"at_least", "below"})
_AGE = re.compile(r"([0-9]{1,5})([DWMY])", re.IGNORECASE)
_DAYS = {"D": 1.0, "W": 7.0, "M": 30.4375, "Y": 365.25}
_DECISIONS = {"process": True, "skip": False}
_MISSING = {"match": True, "no match": False}
_LONGEST_NAME = 64
_LONGEST_REASON = 200


class Verdict(StrEnum):
    """What one condition says of a film."""

    HOLDS = "holds"
    FAILS = "fails"
    MISSING = "missing"


class Decision(NamedTuple):
    """Whether a film is processed, the rule that said so ("" where none was asked or fitted), and its reason."""

    process: bool
    rule: str = ""
    reason: str = ""


class Finding(NamedTuple):
    """What a condition saw: ``value`` is what the film says, "" where it says nothing or must not be shown."""

    condition: str
    value: str
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class TextCondition:
    """One of :data:`TEXTS` fits a pattern."""

    name: str
    pattern: re.Pattern[str]

    def look(self, film: Candidate) -> Finding:
        """Ask the condition about a film."""
        found = [text for text in TEXTS[self.name](film) if text]
        fits = any(self.pattern.match(text.casefold()) for text in found)
        verdict = Verdict.MISSING if not found else Verdict.HOLDS if fits else Verdict.FAILS
        return Finding(self.name, "" if self.name in _UNSHOWN else " ".join(found), verdict)


@dataclass(frozen=True, slots=True)
class AgeCondition:
    """The age at the study lies in a range: days, ``below`` excluded."""

    at_least: float
    below: float
    name: str = "age"

    def look(self, film: Candidate) -> Finding:
        """Ask the condition about a film."""
        days = film.header.age_days
        if days is None:
            return Finding(self.name, "", Verdict.MISSING)
        verdict = Verdict.HOLDS if self.at_least <= days < self.below else Verdict.FAILS
        return Finding(self.name, f"{days} days", verdict)


Condition = TextCondition | AgeCondition


@dataclass(frozen=True, slots=True)
class Rule:
    """If all conditions hold, the film is processed, or skipped for a reason."""

    name: str
    process: bool
    reason: str
    conditions: tuple[Condition, ...]
    missing_matches: bool = False

    def matches(self, film: Candidate) -> bool:
        """Whether this rule decides about ``film``, if it is asked."""
        return all(self._accepts(condition.look(film).verdict) for condition in self.conditions)

    def _accepts(self, verdict: Verdict) -> bool:
        return verdict is Verdict.HOLDS or (verdict is Verdict.MISSING and self.missing_matches)


@dataclass(frozen=True, slots=True)
class Rules:
    """A site's rules, in order, and what becomes of a film that none of them fits."""

    rules: tuple[Rule, ...] = ()
    otherwise: bool = True

    def decide(self, film: Candidate) -> Decision:
        """What the first rule that fits says of ``film``."""
        for rule in self.rules:
            if rule.matches(film):
                return Decision(rule.process, rule.name, rule.reason)
        return Decision(self.otherwise, "", "" if self.otherwise else "no rule asks for it")

    def refusal(self, film: Candidate) -> Refusal | None:
        """Why ``film`` is left out, in the form of :func:`worker.intake.eligibility.refusal`."""
        decision = self.decide(film)
        if decision.process:
            return None
        return Refusal(RULE_SKIPPED, f"{decision.rule}: {decision.reason}" if decision.rule else decision.reason)

    def explain(self, film: Candidate) -> Iterator[tuple[Rule, bool, list[Finding]]]:
        """The rules that were asked, up to the one that decided: what each saw and whether it fitted."""
        for rule in self.rules:
            matched = rule.matches(film)
            yield rule, matched, [condition.look(film) for condition in rule.conditions]
            if matched:
                return


#: What is done where no rules are set.
PROCESS_EVERYTHING = Rules()


def load_rules(settings: Settings) -> Rules:
    """The rules of ``CARINA_RULES``; :data:`PROCESS_EVERYTHING` where it is not set.

    Raises
    ------
    CarinaError
        As :func:`read_rules` does.
    """
    return read_rules(Path(settings.rules).expanduser()) if settings.rules else PROCESS_EVERYTHING


def read_rules(path: Path) -> Rules:
    """Read a file of rules.

    Raises
    ------
    CarinaError
        It cannot be read, or something in it is wrong: says the line, the rule and the key.
    """
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise CarinaError(f"The rules {path} cannot be read: {error.strerror}. Correct CARINA_RULES.") from None
    except UnicodeDecodeError:
        raise CarinaError(f"The rules {path} are not UTF-8 text. Save them as UTF-8.") from None
    try:
        return parse_rules(text)
    except ValueError as error:
        raise CarinaError(f"The rules {path} are wrong: {error}. Then try: carina rules check") from None


def parse_rules(text: str) -> Rules:
    """Rules from the text of a file; raises ValueError, in words for the user."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"not TOML: {error}") from None
    _refuse_unknown(table, frozenset({"rule", "otherwise"}), "")
    otherwise = _choice(table, "otherwise", _DECISIONS, "process", "")
    entries = table.get("rule", [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError("every rule begins with a line [[rule]]")
    places = _Places(text)
    rules: list[Rule] = []
    for number, entry in enumerate(entries):
        rule = _rule(entry, places, number)
        if rule.name in (other.name for other in rules):
            raise ValueError(f"{places.of(number, 'name')}: two rules are called {rule.name!r}")
        rules.append(rule)
    return Rules(tuple(rules), otherwise)


class _Places:
    """Says where in the text a rule's key stands."""

    def __init__(self, text: str) -> None:
        self._lines = text.splitlines()
        self._starts = [
            number for number, line in enumerate(self._lines) if re.match(r"\s*\[\[\s*[\"']?rule[\"']?\s*\]\]", line)
        ]

    def of(self, rule: int, key: str = "") -> str:
        """``line 7, rule 2``: the line of ``key``, or of the rule's head where the key stands nowhere."""
        if rule >= len(self._starts):
            return f"rule {rule + 1}"
        start = self._starts[rule]
        end = self._starts[rule + 1] if rule + 1 < len(self._starts) else len(self._lines)
        written = re.compile(rf"\s*[\"']?{re.escape(key)}[\"']?\s*[=.]") if key else None
        line = next((n for n in range(start, end) if written is not None and written.match(self._lines[n])), start)
        return f"line {line + 1}, rule {rule + 1}"


def _rule(entry: Mapping[str, Any], places: _Places, number: int) -> Rule:
    for key in entry:
        _refuse_unknown({key: None}, _RULE_KEYS, places.of(number, key))
    name, reason = (
        _text(entry, key, limit, places.of(number, key))
        for key, limit in (("name", _LONGEST_NAME), ("reason", _LONGEST_REASON))
    )
    if not name:
        raise ValueError(f"{places.of(number)}: a rule needs a name")
    if "decision" not in entry:
        raise ValueError(f'{places.of(number)}: {name!r} needs decision = "process" or "skip"')
    process = _choice(entry, "decision", _DECISIONS, "", places.of(number, "decision"))
    if not process and not reason:
        raise ValueError(f"{places.of(number)}: {name!r} skips films, so it needs a reason")
    missing = _choice(entry, "when_missing", _MISSING, "no match", places.of(number, "when_missing"))
    conditions: list[Condition] = [
        TextCondition(key, _patterns(entry[key], key, places.of(number, key))) for key in TEXTS if key in entry
    ]
    if "age" in entry:
        conditions.append(_age(entry["age"], places.of(number, "age")))
    return Rule(name, process, reason, tuple(conditions), missing)


def _refuse_unknown(table: Mapping[str, Any], known: frozenset[str], place: str) -> None:
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"it may be one of {', '.join(sorted(known))}"
            raise ValueError(f"{place}: {key!r} means nothing here; {hint}" if place else f"{key!r} is unknown; {hint}")


def _choice(table: Mapping[str, Any], key: str, choices: Mapping[str, bool], default: str, place: str) -> bool:
    value = table.get(key, default)
    if not isinstance(value, str) or value not in choices:
        wanted = " or ".join(f'"{choice}"' for choice in choices)
        raise ValueError(f"{place}: {key} must be {wanted}".removeprefix(": "))
    return choices[value]


def _text(entry: Mapping[str, Any], key: str, limit: int, place: str) -> str:
    value = entry.get(key, "")
    if not isinstance(value, str) or len(value) > limit or not value.isprintable():
        raise ValueError(f"{place}: {key} must be one line of text, at most {limit} characters")
    return value.strip()


def _patterns(value: Any, key: str, place: str) -> re.Pattern[str]:
    patterns = [value] if isinstance(value, str) else value
    if not isinstance(patterns, list) or not patterns or not all(isinstance(item, str) and item for item in patterns):
        raise ValueError(f'{place}: {key} must be a pattern, as "CHEST*", or a list of patterns')
    return re.compile("|".join(fnmatch.translate(item.casefold()) for item in patterns))


def _age(value: Any, place: str) -> AgeCondition:
    if not isinstance(value, dict) or not value:
        raise ValueError(f'{place}: age must be a range, as {{ at_least = "28D", below = "18Y" }}')
    _refuse_unknown(value, _AGE_KEYS, place)
    at_least = _days(value["at_least"], place) if "at_least" in value else 0.0
    below = _days(value["below"], place) if "below" in value else float("inf")
    if at_least >= below:
        raise ValueError(f"{place}: no age is at least {value['at_least']} and below {value['below']}")
    return AgeCondition(at_least, below)


def _days(value: Any, place: str) -> float:
    match = _AGE.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f'{place}: an age is a number and D, W, M or Y, as "28D" or "18Y"')
    return int(match[1]) * _DAYS[match[2].upper()]
