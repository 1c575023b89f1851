"""Commands for the site's rules: what do they say, and what do they say of this film?"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from schema.tables import Lane
from worker.cli import EXIT_FAILED_FILMS
from worker.settings import load_settings

if TYPE_CHECKING:
    from worker.intake.rules import Rules

_RULES = click.option(
    "--rules", "file", type=click.Path(path_type=Path, dir_okay=False), help="Another file than that of CARINA_RULES."
)


@click.group()
def rules() -> None:
    """Which films this site wants processed.

    Example: carina rules test film.dcm
    """


@rules.command()
@_RULES
def check(file: Path | None) -> None:
    """Say whether the rules can be read, and what they are.

    Example: carina rules check
    """
    found = _read(file)
    for number, rule in enumerate(found.rules, start=1):
        verb = "process" if rule.process else "skip"
        asked = ", ".join(condition.name for condition in rule.conditions) or "every film"
        click.echo(f"{number}. {rule.name}: {verb} by {asked}{f' ({rule.reason})' if rule.reason else ''}")
    click.echo(f"Otherwise: {'process' if found.otherwise else 'skip'}")


@rules.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path, dir_okay=False))
@_RULES
@click.option(
    "--lane",
    type=click.Choice([str(lane) for lane in Lane]),
    default=Lane.ICU.value,
    show_default=True,
    help="The lane the films would join.",
)
@click.option("--calling-ae", default="", metavar="TITLE", help="The AE title that would send them.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def test(
    ctx: click.Context, files: tuple[Path, ...], file: Path | None, *, lane: str, calling_ae: str, as_json: bool
) -> None:
    """Explain for each DICOM file of FILES which rule decides, and what its conditions see.

    Nothing is registered. Exit code 3: a file could not be read.

    Example: carina rules test film.dcm --lane icu
    """
    found = _read(file)
    answers = [_explain(found, path, lane, calling_ae) for path in files]
    if as_json:
        click.echo(json.dumps([answer.to_json() for answer in answers], indent=2))
    else:
        for answer in answers:
            answer.show()
    if any(answer.error for answer in answers):
        ctx.exit(EXIT_FAILED_FILMS)


@dataclass
class _Answer:
    """What becomes of one file, and what was asked about it."""

    path: Path
    process: bool = False
    decided_by: str = ""
    reason: str = ""
    error: str = ""
    asked: list[dict[str, Any]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return {
            "file": str(self.path),
            "decision": None if self.error else "process" if self.process else "skip",
            "decided_by": self.decided_by,
            "reason": self.reason,
            "error": self.error or None,
            "asked": self.asked,
        }

    def show(self) -> None:
        click.echo(f"{self.path}: {self.error or self._decision()}")
        for rule in self.asked:
            click.echo(f"  {rule['rule']}: {'decides' if rule['matches'] else 'does not fit'}")
            for condition in rule["conditions"]:
                seen = f" ({condition['value']})" if condition["value"] else ""
                click.echo(f"    {condition['condition']} {condition['verdict']}{seen}")

    def _decision(self) -> str:
        because = f": {self.reason}" if self.reason else ""
        return f"{'process' if self.process else 'skip'}, decided by {self.decided_by}{because}"


def _read(file: Path | None) -> Rules:
    from worker.intake.rules import load_rules, read_rules

    return load_rules(load_settings()) if file is None else read_rules(file)


def _explain(found: Rules, path: Path, lane: str, calling_ae: str) -> _Answer:
    from worker.errors import FilmError, sentence
    from worker.film.reader import open_source, read_header
    from worker.intake.eligibility import refusal
    from worker.intake.rules import Candidate

    try:
        with open_source(path) as (stream, size):
            header = read_header(stream, size)
    except FilmError as error:
        return _Answer(path, error=str(error))
    refused = refusal(header)
    if refused is not None:
        # Asked before any rule: no rule can make a film of it.
        return _Answer(path, decided_by="its header", reason=sentence(*refused))
    film = Candidate(header, lane, calling_ae)
    decision = found.decide(film)
    asked = [
        {"rule": rule.name, "matches": matches, "conditions": [finding._asdict() for finding in findings]}
        for rule, matches, findings in found.explain(film)
    ]
    by = f"rule {decision.rule}" if decision.rule else "otherwise"
    return _Answer(path, decision.process, by, decision.reason, asked=asked)
