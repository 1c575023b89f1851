"""What people are told of one film, in the report and on the page: flags as sentences, findings as bars."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from sqlalchemy import Connection, select

from schema import findings as finding_names
from schema.findings import Finding
from schema.tables import failure_flag, finding_score, heatmap
from worker.findings import flags as flag_rules
from worker.results.masks import DamagedMaskError, decode_array
from worker.results.result import Flag

log = logging.getLogger(__name__)

#: So much of a key is shown; with it and the film's number the database finds the rest.
KEY_DIGITS = 8


@dataclass(frozen=True)
class FindingBar:
    """One finding of one film; numbers are 0-1.

    ``members`` are the probabilities of the single networks, ``spread`` their highest less their lowest.
    """

    finding: str
    title: str
    probability: float
    threshold: float
    positive: bool
    spread: float
    members: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class FlagGroup:
    """Flags of one film about which a person does the same."""

    advice: str
    sentences: tuple[str, ...]


def template_environment(*packages: str) -> Environment:
    """Templates of these packages, the first one's before the next one's; what comes from outside is escaped."""
    return Environment(
        loader=ChoiceLoader([PackageLoader(package) for package in packages]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def read_flags(connection: Connection, jobs: Sequence[int]) -> dict[int, list[Flag]]:
    """Job id → its flags in the order in which they were raised."""
    flags: dict[int, list[Flag]] = defaultdict(list)
    for row in connection.execute(
        select(failure_flag).where(failure_flag.c.job_id.in_(jobs)).order_by(failure_flag.c.id)
    ):
        flags[row.job_id].append(
            Flag(row.rule, row.rule_version, row.source, row.region, row.value, row.threshold, row.detail)
        )
    return flags


def read_scores(connection: Connection, jobs: Sequence[int]) -> dict[int, list[Any]]:
    """Job id → its rows of ``finding_score``."""
    scores: dict[int, list[Any]] = defaultdict(list)
    for row in connection.execute(select(finding_score).where(finding_score.c.job_id.in_(jobs))):
        scores[row.job_id].append(row)
    return scores


def read_heat(connection: Connection, jobs: Sequence[int]) -> dict[int, Any]:
    """Job id → its row of ``heatmap``."""
    return {row.job_id: row for row in connection.execute(select(heatmap).where(heatmap.c.job_id.in_(jobs)))}


def flag_groups(flags: Sequence[Flag]) -> Iterator[FlagGroup]:
    """What is wrong before and after clean-up is said once, as after; what needs nobody comes last."""
    cleaned = {(flag.rule, flag.region) for flag in flags if flag.source == "cleaned"}
    groups: dict[str, list[str]] = defaultdict(list)
    for flag in flags:
        if flag.source != "raw" or (flag.rule, flag.region) not in cleaned:
            groups[flag_rules.advice(flag)].append(flag_rules.describe(flag))
    for advice, sentences in sorted(groups.items(), key=lambda group: group[0].startswith("Nothing to do")):
        yield FlagGroup(advice, tuple(sentences))


def finding_bars(scores: Sequence[Any]) -> tuple[FindingBar, ...]:
    """Findings in the papers' order, the positive ones first."""
    order = {str(finding): place for place, finding in enumerate(Finding)}
    ranked = sorted(scores, key=lambda row: (not row.positive, order.get(row.finding, len(order)), row.finding))
    return tuple(
        FindingBar(
            row.finding,
            finding_names.title(row.finding),
            row.probability,
            row.threshold,
            row.positive,
            row.spread,
            tuple(sorted(row.members.items())),
        )
        for row in ranked
    )


def leading_finding(scores: Sequence[Any]) -> str | None:
    """The positive finding that is furthest above its threshold; none for a film without one."""
    positive = [row for row in scores if row.positive and row.finding != Finding.NO_FINDING]
    return max(positive, key=lambda row: row.probability - row.threshold).finding if positive else None


def activation(heat: Any, finding: str | None) -> npt.NDArray[np.uint8] | None:
    """The activation map of a finding, uint8 (height, width); None where there is none or it is damaged."""
    if heat is None or finding not in heat.findings:
        return None
    try:
        maps = decode_array(heat.maps, (len(heat.findings), heat.height, heat.width))
    except DamagedMaskError as error:
        log.error("job %d: %s", heat.job_id, error)
        return None
    return maps[heat.findings.index(finding)]


def engine_words(engine: dict[str, Any]) -> str:
    """``"openvino 2026.4, fp32, Intel(R) Xeon(R)"``."""
    names = (engine.get("backend", "engine"), engine.get("backend_version", ""))
    parts = (" ".join(names).strip(), engine.get("precision", ""), engine.get("device", ""))
    return ", ".join(str(part) for part in parts if part)
