from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from intake_rows import SITE_KEY, arrival_at, film, header, one, rows, source, states, work
from ledger_rows import Ledger

from schema import queries, tables
from schema.database import Database
from schema.tables import PRIORITY, Lane
from worker.errors import CarinaError
from worker.intake.preview import Preview
from worker.intake.register import Counts, Examined, Registrar
from worker.intake.rules import (
    PROCESS_EVERYTHING,
    RULE_SKIPPED,
    TEXTS,
    Candidate,
    Rules,
    Verdict,
    load_rules,
    parse_rules,
    read_rules,
)
from worker.intake.scan import open_submission
from worker.queue.invariants import check_invariants
from worker.settings import Settings

ADULTS = """
[[rule]]
name = "adults"
decision = "skip"
reason = "adults are read elsewhere"
age = { at_least = "18Y" }
"""


def asked(lane: str = "icu", calling_ae: str = "", **attributes: Any) -> Candidate:
    return Candidate(header(**attributes), lane, calling_ae)


def register(database: Database, rules: Rules, *files: Examined, lane: str = Lane.ARCHIVE) -> Counts:
    return Registrar(database, SITE_KEY, open_submission(database, lane), lane, rules).register(files)


def rule(name: str, decision: str, **conditions: str) -> str:
    lines = [f'name = "{name}"', f'decision = "{decision}"', f'reason = "reason of {name}"']
    return "\n".join(["[[rule]]", *lines, *(f"{key} = {value}" for key, value in conditions.items()), ""])


def test_without_rules_everything_is_processed() -> None:
    assert load_rules(Settings(home=Path("/nowhere"))) is PROCESS_EVERYTHING
    assert PROCESS_EVERYTHING.decide(asked()).process


@pytest.mark.parametrize(
    ("condition", "film_says", "fits"),
    [
        ('modality = "DX"', {"modality": "DX"}, True),
        ('modality = ["CR", "DX"]', {"modality": "OT"}, False),
        ('body_part = "chest*"', {"body_part": "CHEST_ABD"}, True),
        ('view_position = "A?"', {"view_position": "AP"}, True),
        ('view_position = "A"', {"view_position": "AP"}, False),
        ('station = "nicu-[0-4]"', {"station_name": "NICU-3"}, True),
        ('manufacturer = "*gmbh*"', {"manufacturer": "Röntgen GmbH, Köln"}, True),
        ('description = "*THORAX*"', {"series_description": "Thorax a.p. im Liegen"}, True),
        ('description = "*thorax*"', {"study_description": "Thorax", "series_description": "Bett"}, True),
        ('description = "*thorax*"', {"study_description": "Hüfte"}, False),
        ('calling_ae = "ICU*"', {"calling_ae": "ICU_CR1"}, True),
        ('lane = "archive"', {"lane": "icu"}, False),
        ('age = { at_least = "28D", below = "18Y" }', {"age_days": 28}, True),
        ('age = { at_least = "28D", below = "18Y" }', {"age_days": 27}, False),
        ('age = { below = "18Y" }', {"age_days": 6574}, True),
        ('age = { below = "18Y" }', {"age_days": 6575}, False),
    ],
)
def test_conditions(condition: str, film_says: dict[str, Any], fits: bool) -> None:
    rules = parse_rules(f'[[rule]]\nname = "r"\ndecision = "skip"\nreason = "x"\n{condition}\n')
    assert rules.decide(asked(**film_says)).process is not fits


def test_all_conditions_must_hold_and_the_first_rule_decides() -> None:
    rules = parse_rules(
        rule("a", "skip", modality='"CR"', station='"X"')
        + rule("b", "process", modality='"CR"')
        + rule("c", "skip", modality='"CR"')
    )
    assert rules.decide(asked(modality="CR", station_name="Y")) == (True, "b", "reason of b")
    assert rules.decide(asked(modality="CR", station_name="X")) == (False, "a", "reason of a")
    assert rules.decide(asked(modality="DX")) == (True, "", "")


@pytest.mark.parametrize("key", [*TEXTS, "age"])
def test_what_the_film_does_not_say_fails_unless_the_rule_says_otherwise(key: str) -> None:
    value = '{ below = "99Y" }' if key == "age" else '"*"'
    nothing = Candidate(
        header(modality="", body_part="", view_position="", station_name="", manufacturer="", age_days=None)
    )
    assert parse_rules(rule("r", "skip", **{key: value})).decide(nothing).process
    assert not parse_rules(rule("r", "skip", **{key: value}, when_missing='"match"')).decide(nothing).process


def test_otherwise_may_skip() -> None:
    rules = parse_rules('otherwise = "skip"\n' + rule("r", "process", modality='"CR"'))
    assert rules.decide(asked(modality="CR")).process
    refused = rules.refusal(asked(modality="DX"))
    assert refused == (RULE_SKIPPED, "no rule asks for it")


def test_an_explanation_shows_no_description() -> None:
    rules = parse_rules(rule("r", "skip", description='"*MEIER*"', modality='"DX"') + rule("s", "skip"))
    asked_about = asked(study_description="Anna MEIER", modality="CR")
    (first, fits, findings), (second, decided, _) = rules.explain(asked_about)
    assert (first.name, fits, second.name, decided) == ("r", False, "s", True)
    assert {(found.condition, found.value, found.verdict) for found in findings} == {
        ("description", "", Verdict.HOLDS), ("modality", "CR", Verdict.FAILS),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("otherwise = maybe", "not TOML: .*line 1"),
        ('otherwise = "maybe"', 'otherwise must be "process" or "skip"'),
        ("rules = []", "'rules' is unknown; did you mean rule"),
        ("rule = 3", r"\[\[rule\]\]"),
        (
            '[[rule]]\nname = "a"\ndecision = "skip"\nreason = "x"\nmodalty = "CR"',
            "line 5, rule 1.*did you mean modality",
        ),
        ('\n\n[[rule]]\ndecision = "process"', "line 3, rule 1: a rule needs a name"),
        ('[[rule]]\nname = "a"', "line 1, rule 1: 'a' needs decision"),
        ('[[rule]]\nname = "a"\ndecision = "drop"', "line 3, rule 1: decision must be"),
        ('[[rule]]\nname = "a"\ndecision = "skip"', "needs a reason"),
        (rule("a", "skip") + rule("a", "skip"), "line 6, rule 2: two rules are called 'a'"),
        (rule("a", "skip") + rule("b", "skip", modality="3"), "line 9, rule 2: modality must be a pattern"),
        (rule("a", "skip", modality="[]"), "must be a pattern"),
        (rule("a", "skip", age='"18Y"'), "age must be a range"),
        (rule("a", "skip", age="{ above = 3 }"), "'above' means nothing here"),
        (rule("a", "skip", age="{ below = 3 }"), "an age is a number and D, W, M or Y"),
        (rule("a", "skip", age='{ at_least = "2Y", below = "24M" }'), "no age is at least 2Y and below 24M"),
        (rule("a", "skip", when_missing='"maybe"'), 'when_missing must be "match" or "no match"'),
        (rule("a" * 65, "skip"), "name must be one line of text, at most 64"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(text: str, says: str, tmp_path: Path) -> None:
    file = tmp_path / "rules.toml"
    file.write_text(text)
    with pytest.raises(CarinaError, match=says):
        read_rules(file)


def test_rules_that_cannot_be_read_stop_the_intake(tmp_path: Path) -> None:
    with pytest.raises(CarinaError, match="Correct CARINA_RULES"):
        load_rules(Settings(home=tmp_path, rules=str(tmp_path / "absent.toml")))
    (tmp_path / "latin").write_bytes('name = "Köln"'.encode("latin-1"))
    with pytest.raises(CarinaError, match="UTF-8"):
        read_rules(tmp_path / "latin")


MODALITIES = ["", "CR", "DX", "OT"]
AGES = [None, 0, 27, 28, 6574, 6575, 30000]
rule_texts = st.lists(
    st.tuples(
        st.sampled_from(["process", "skip"]),
        st.lists(st.sampled_from(["CR", "DX", "O?", "*"]), max_size=2),
        st.sampled_from(["", '{ at_least = "28D" }', '{ below = "18Y" }', '{ at_least = "28D", below = "18Y" }']),
        st.sampled_from(["match", "no match"]),
    ),
    max_size=5,
)
films = st.builds(
    lambda modality, age: asked(modality=modality, age_days=age), st.sampled_from(MODALITIES), st.sampled_from(AGES)
)


def as_toml(drawn: list[tuple[str, list[str], str, str]]) -> Rules:
    text = ""
    for number, (decision, patterns, age, missing) in enumerate(drawn):
        conditions = {"modality": str(patterns).replace("'", '"')} if patterns else {}
        text += rule(str(number), decision, **conditions, **({"age": age} if age else {}), when_missing=f'"{missing}"')
    return parse_rules(text)


@given(rule_texts, films)
def test_nothing_behind_the_rule_that_decided_matters_and_nothing_before_it_fits(drawn: Any, film: Candidate) -> None:
    rules = as_toml(drawn)
    decision = rules.decide(film)
    if not decision.rule:
        assert not any(one.matches(film) for one in rules.rules) and decision.process
        return
    place = int(decision.rule)
    assert as_toml(drawn[: place + 1]).decide(film) == decision
    assert as_toml(drawn[:place]).decide(film).rule == ""
    assert [fits for _, fits, _ in rules.explain(film)] == [False] * place + [True]


@given(rule_texts, films)
def test_the_contrary_rules_decide_the_contrary(drawn: Any, film: Candidate) -> None:
    contrary = [("skip" if decision == "process" else "process", *rest) for decision, *rest in drawn]
    first, second = as_toml(drawn).decide(film), as_toml(contrary).decide(film)
    assert first.rule == second.rule and (not first.rule or first.process is not second.process)


def test_a_skipped_film_has_a_row_with_the_rule_and_its_reason(database: Database) -> None:
    counts = register(database, parse_rules(ADULTS), film("2.25.1", "a", age_days=9000), film("2.25.2", "b"))
    assert (counts.registered, counts.ineligible, counts.files) == (1, {RULE_SKIPPED: 1}, 2)
    job = one(database, tables.job, tables.job.c.state == "ineligible")
    assert (job.kind, job.code, job.detail) == ("process", RULE_SKIPPED, "adults: adults are read elsewhere")
    assert arrival_at(database, "a").state == "instance" and check_invariants(database) == []


def test_what_can_be_no_radiograph_is_said_before_any_rule(database: Database) -> None:
    counts = register(database, parse_rules(ADULTS), film("2.25.1", "a", age_days=9000, number_of_frames=9))
    assert counts.ineligible == {"MULTI_FRAME": 1}


def test_a_second_file_of_a_skipped_film_is_no_failure(database: Database) -> None:
    rules = parse_rules(ADULTS)
    files = (film("2.25.1", "a", age_days=9000), film("2.25.1", "b", age_days=9000))
    assert register(database, rules, *files).ineligible == {RULE_SKIPPED: 2}
    again = register(database, rules, *files)
    assert (again.seen_before, again.reopened, again.files) == (2, 0, 2)
    with database.read() as connection:
        counts = queries.submission_counts(connection, 2)
        assert queries.failed_films(connection, limit=9) == []
    assert (counts.ineligible, counts.files, counts.open) == (2, 2, 0) and check_invariants(database) == []


def test_films_that_other_rules_want_are_processed_when_they_come_again(ledger: Ledger) -> None:
    database = ledger.database
    files = (film("2.25.1", "a", age_days=9000), film("2.25.1", "b", age_days=9000))
    register(database, parse_rules(ADULTS), *files)
    preview = Preview(database, SITE_KEY).register(files)
    counts = register(database, PROCESS_EVERYTHING, *files, lane=Lane.ICU)
    assert (counts.seen_before, counts.reopened, counts.work) == (2, 2, 2)
    assert (preview.seen_before, preview.reopened) == (2, 2)
    published = rows(database, tables.job, tables.job.c.published)
    assert {(job.state, job.code, job.priority) for job in published} == {("ready", None, PRIORITY["icu"])}
    work(ledger, {"a": "A", "b": "A"})
    assert states(database, tables.job) == {"done": 2, "ineligible": 2}
    assert states(database, tables.arrival) == {"instance": 1, "duplicate": 1}
    assert register(database, parse_rules(ADULTS), *files).reopened == 0
    assert states(database, tables.job) == {"done": 2, "ineligible": 2} and check_invariants(database) == []


def test_a_film_skipped_from_one_sender_and_wanted_from_another_is_processed(ledger: Ledger) -> None:
    database = ledger.database
    rules = parse_rules('otherwise = "skip"\n' + rule("icu", "process", calling_ae='"ICU*"'))
    first = Examined(source("a"), header("2.25.1"), calling_ae="WARD")
    second = Examined(source("b"), header("2.25.1"), calling_ae="ICU1")
    assert register(database, rules, first).ineligible == {RULE_SKIPPED: 1}
    counts = register(database, rules, second)
    assert (counts.unverified, counts.work) == (1, 2)
    work(ledger, {"a": "A", "b": "A"})
    assert states(database, tables.job) == {"done": 2, "ineligible": 1} and check_invariants(database) == []


def test_a_dry_run_counts_what_the_rules_leave_out(database: Database) -> None:
    files = (film("2.25.1", "a", age_days=9000), film("2.25.1", "b", age_days=9000), film("2.25.2", "c"))
    preview = Preview(database, SITE_KEY, Lane.ARCHIVE, parse_rules(ADULTS)).register(files)
    real = register(database, parse_rules(ADULTS), *files)
    assert (preview.ineligible, preview.registered, preview.rejected) == (
        real.ineligible, real.registered, real.rejected,
    )  # fmt: skip
