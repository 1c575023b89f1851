"""A rebuild from its beginning to its end, and from where it stopped."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from phantom_bundle import PHANTOM_BUNDLE
from sqlalchemy import select
from tiny_recipes import FINDINGS, REGIONS, write_recipe

from schema import tables
from schema.bundle import BundleError, read_manifest
from schema.database import Database
from schema.keys import is_held_out
from schema.tables import RebuildState
from trainer.errors import DataError, RunError
from trainer.rebuild import run as running
from trainer.rebuild.ledger import Rebuild, list_rebuilds
from trainer.rebuild.request import make_request
from trainer.rebuild.run import NAMES, STAGES, rebuild
from trainer.training.progress import TrainingProgress
from worker.errors import FilmError
from worker.inference.bundles import load_bundle
from worker.inference.promotion_metrics import judge_metrics
from worker.inference.registry import bundle_folder, champion, list_bundles
from worker.settings import Settings

MakeRequest = Any
CHAMPION = read_manifest(PHANTOM_BUNDLE).key


def rows_of(settings: Settings) -> list[Rebuild]:
    database = Database(settings.url)
    try:
        return list_rebuilds(database)
    finally:
        database.close()


class Told(TrainingProgress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


# The whole thing, on phantoms


class Site:
    """A home in which regions and findings were rebuilt from phantoms."""

    def __init__(self, folder: Path) -> None:
        home = folder / "home"
        home.mkdir()
        (home / "site.key").write_text("5a" * 32)
        self.settings = Settings(home=home, disk_reserve=0, bundle=str(PHANTOM_BUNDLE))
        member = write_recipe(folder, "tiny-findings", FINDINGS)
        recipe = write_recipe(folder, "tiny-regions", REGIONS + f'members = ["{member}"]\n')
        self.report = rebuild(self.settings, make_request(recipe, data="phantoms"), replicates=50)
        self.folder = Path(self.report["folder"])
        self.database = Database(self.settings.url)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Any:
    import torch

    torch.set_num_threads(1)
    made = Site(tmp_path_factory.mktemp("site"))
    yield made
    made.database.close()


def test_the_candidate_is_registered_and_nothing_is_promoted(site: Site) -> None:
    (row,) = list_rebuilds(site.database)
    entries = {entry.key: entry for entry in list_bundles(site.database, site.settings)}
    key = f"tiny-regions:{row.started_at:%Y%m%d}.1"
    assert entries[key].aliases == ("candidate",) and entries[key].here
    assert entries[CHAMPION].aliases == ("champion",)
    assert (row.state, row.bundle, row.champion, row.stage) == (RebuildState.FINISHED, key, CHAMPION, "report")
    assert row.outcome == site.report["outcome"] and key in row.outcome
    assert set(row.results["seconds"]) == {name for name, _ in STAGES}
    with site.database.read() as connection:
        event = tables.audit_event.c
        said = [tuple(row) for row in connection.execute(select(event.actor, event.action, event.subject))]
    assert ("carina rebuild", "add", key) in said
    assert [action for _, action, subject in said if subject == key] == ["add"]


def test_a_promotion_would_be_judged_by_its_comparison(site: Site) -> None:
    entries = {entry.key: entry for entry in list_bundles(site.database, site.settings)}
    comparison = site.report["comparison"]
    judgement = judge_metrics(site.database, entries[comparison["candidate"]], entries[CHAMPION])
    assert len(judgement.below) == len(comparison["below"])
    assert all(" held-out films of rebuild 1" in sentence for sentence in judgement.below)
    counts = comparison["films"]
    found = [f"on the {count} held-out films of rebuild 1" in str(judgement.remarks) for count in counts.values()]
    assert counts and all(found)
    assert [f"Rebuild 1: {remark}" for remark in comparison["remarks"]] == list(judgement.remarks[2:])


def test_its_engines_passed_the_gate_and_are_in_the_cache(site: Site) -> None:
    directory = bundle_folder(site.settings, _entry(site).sha256)
    loaded = load_bundle(directory, home=site.settings.home)
    loaded.close()
    assert sum("from the cache" in note for note in loaded.notes) == len(loaded.engines) == 2
    with site.database.read() as connection:
        engine = connection.execute(select(tables.engine)).one()
    assert engine.bundle_id == _entry(site).id
    assert {member: each["passed"] for member, each in engine.parity.items()} == dict.fromkeys(loaded.engines, True)


def test_nobody_learned_from_who_judges(site: Site) -> None:
    parts: dict[str, set[str]] = {"train": set(), "validation": set(), "test": set()}
    for split in site.folder.glob("runs/*/split.csv"):
        for line in split.read_text().splitlines()[1:]:
            _, patient, part = line.split(",")
            parts[part].add(patient)
    assert {is_held_out(patient) for patient in parts["test"]} == {True}
    assert {is_held_out(patient) for patient in parts["train"] | parts["validation"]} == {False}


def test_both_bundles_judged_the_same_films(site: Site) -> None:
    judged = {}
    for who in ("candidate", "champion"):
        table = (site.folder / "evaluation" / who / "findings" / "films.csv").read_text().splitlines()
        judged[who] = [line.split(",")[1] for line in table[1:]]
    assert judged["candidate"] == judged["champion"]
    assert len(judged["candidate"]) == site.report["comparison"]["films"]["findings"]
    figures = {figure["name"]: figure for figure in site.report["comparison"]["figures"]}
    assert figures["AUROC of pneumonia"]["champion"] > 0.9
    assert figures["AUROC of pneumonia"]["candidate"] is not None


def test_regions_of_other_sets_are_not_compared(site: Site) -> None:
    remarks = " ".join(site.report["comparison"]["remarks"])
    assert "The masks were not compared: the candidate draws background, left_lung" in remarks
    assert "findings may have been learned from some of these films" in remarks


def test_the_report_says_it_all_and_names_nobody(site: Site) -> None:
    text = (site.folder / "report.md").read_text()
    assert "Research use, not a medical device." in text
    for part in (site.report["bundle"], CHAMPION, "AUROC of pneumonia", "carina bundle promote", "evaluation"):
        assert part in text
    assert "phantom-0" not in text
    assert json.loads((site.folder / "report.json").read_text()) == site.report
    for link in ("evaluation/candidate/report.md", "evaluation/champion/report.md", "bundle/model-card.md"):
        assert f"({link})" in text and (site.folder / link).is_file()


def test_pictures_do_not_stay(site: Site) -> None:
    assert not list(site.folder.rglob("cache")) and not (site.folder / "unpacked").exists()


def _entry(site: Site) -> Any:
    return next(entry for entry in list_bundles(site.database, site.settings) if "candidate" in entry.aliases)


# Where it stops, it goes on


class Died(BaseException):
    """The process is dead: nobody cleans up."""


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The stages that were done; they do nothing but write themselves down, and the report is a sentence."""
    names: list[str] = []

    def stage(name: str) -> Any:
        def do(work: Any) -> dict[str, Any]:
            names.append(name)
            return {"bundle_id": 1} if name == "registration" else {name: len(names)}

        return do

    monkeypatch.setattr(running, "STAGES", tuple((name, stage(name)) for name, _ in STAGES))
    monkeypatch.setattr(running, "write_report", lambda *_: {"outcome": "the candidate is good"})
    monkeypatch.setattr("trainer.rebuild.stages.Work.runs", [])
    return names


def replace_stage(monkeypatch: pytest.MonkeyPatch, wanted: str, do: Any) -> None:
    monkeypatch.setattr(
        running, "STAGES", tuple((name, do if name == wanted else stage) for name, stage in running.STAGES)
    )


@pytest.mark.parametrize("stage", [name for name, _ in STAGES])
@pytest.mark.parametrize("moment", ["before", "after", "noted"])
def test_every_stage_may_die_and_is_gone_on_with(
    settings: Settings, ask: MakeRequest, done: list[str], monkeypatch: pytest.MonkeyPatch, stage: str, moment: str
) -> None:
    place = NAMES.index(stage)
    real = dict(running.STAGES)[stage]
    with monkeypatch.context() as patched:
        if moment == "noted":
            noted = running.RebuildLedger.advance

            def advance(self: Any, row: Any, name: str, results: Any) -> Any:
                noted(self, row, name, results)
                if name == NAMES[place + 1]:
                    raise Died
                return noted(self, row, name, results)

            patched.setattr(running.RebuildLedger, "advance", advance)
        else:

            def die(work: Any) -> Any:
                if moment == "after":
                    real(work)
                raise Died

            replace_stage(patched, stage, die)
        with pytest.raises(Died):
            rebuild(settings, ask())
    (row,) = rows_of(settings)
    assert (row.state, row.stage) == (RebuildState.RUNNING, NAMES[place + (moment == "noted")])
    told = Told()
    assert rebuild(settings, ask(), progress=told)["outcome"] == "the candidate is good"
    (row,) = rows_of(settings)
    assert (row.state, row.outcome) == (RebuildState.FINISHED, "the candidate is good")
    assert [name for name, _ in STAGES] == list(dict.fromkeys(done))
    assert len(done) == len(STAGES) + (moment == "after")
    assert set(row.results["seconds"]) == {name for name, _ in STAGES}


def test_what_a_person_must_mend_is_said_and_then_gone_on_with(
    settings: Settings, ask: MakeRequest, done: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    troubles: list[tuple[BaseException, str]] = [
        (DataError("the films are gone"), "the films are gone"),
        (BundleError("no precision passes"), "no precision passes"),
        (FilmError("BUNDLE_MISSING"), "This machine lacks the files of the bundle. Copy or mount the bundle."),
        (OSError(28, "No space left on device"), "Rebuild 1 stopped in stage evaluation: No space left on device."),
    ]
    for trouble, said in troubles:
        with monkeypatch.context() as patched:

            def stop(_work: Any, trouble: BaseException = trouble) -> Any:
                raise trouble

            replace_stage(patched, "evaluation", stop)
            with pytest.raises((DataError, BundleError, FilmError, RunError)):
                rebuild(settings, ask())
        (row,) = rows_of(settings)
        assert (row.state, row.stage, row.outcome) == (RebuildState.FAILED, "evaluation", said)
    assert rebuild(settings, ask())["outcome"]
    assert len(done) == len(STAGES)


@pytest.mark.parametrize("trouble", [DataError("too few films"), Died()], ids=["failed", "died"])
def test_films_are_chosen_anew_after_a_failure_and_kept_after_a_death(
    settings: Settings, ask: MakeRequest, done: list[str], monkeypatch: pytest.MonkeyPatch, trouble: BaseException
) -> None:
    kept = []

    def choose(work: Any) -> dict[str, Any]:
        kept.append(work.folder.films.is_file())
        work.folder.films.write_text("{}")
        if len(kept) == 1:
            raise trouble
        return {}

    replace_stage(monkeypatch, "films", choose)
    with pytest.raises(type(trouble)):
        rebuild(settings, ask())
    rebuild(settings, ask())
    assert [row.id for row in rows_of(settings)] == [1]
    assert kept == [False, isinstance(trouble, Died)]


def test_a_new_one_follows_a_finished_one_and_fresh_leaves_what_was_begun(
    settings: Settings, ask: MakeRequest, done: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rebuild(settings, ask())
    with monkeypatch.context() as patched:
        replace_stage(patched, "packaging", lambda _: (_ for _ in ()).throw(Died()))
        with pytest.raises(Died):
            rebuild(settings, ask())
    rebuild(settings, ask(), fresh=True)
    assert [(row.id, str(row.state)) for row in rows_of(settings)] == [(3, "finished"), (2, "failed"), (1, "finished")]
    assert {row.folder.name for row in rows_of(settings)} == {f"000{number}-tiny-findings" for number in (1, 2, 3)}


def test_a_folder_with_other_things_is_refused(
    settings: Settings, ask: MakeRequest, done: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    rebuild(settings, ask(out=out))
    for request in (ask(out=out), ask(out=out, int8=True)):
        with pytest.raises(RunError, match="other things than this rebuild"):
            rebuild(settings, request)
    assert [str(row.state) for row in rows_of(settings)] == ["failed", "failed", "finished"]
    shutil.rmtree(out)
    assert rebuild(settings, ask(out=out, int8=True))["outcome"]


def test_the_champion_is_the_one_that_served_when_it_began(
    settings: Settings, ask: MakeRequest, done: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def look(work: Any) -> dict[str, Any]:
        seen.append((work.champion.manifest.key, work.champion.directory))
        return {}

    replace_stage(monkeypatch, "evaluation", look)
    rebuild(settings, ask())
    database = Database(settings.url)
    assert seen == [(CHAMPION, champion(database, settings).directory)]
    database.close()


def test_findings_join_the_champions_segmentation(settings: Settings, ask: MakeRequest) -> None:
    from types import SimpleNamespace

    from trainer.rebuild import stages

    work: Any = SimpleNamespace(
        runs=[SimpleNamespace(recipe=ask().recipe)],
        request=ask(), version="20260301.1", champion=SimpleNamespace(directory=Path("/champion")),
    )  # fmt: skip
    table = stages._bundle_table(work)
    assert (table.name, table.version, table.segmentation) == ("tiny-findings", "20260301.1", "/champion")
    chosen = ask(FINDINGS + 'segmentation = "/mine"\n')
    work.runs, work.request = [SimpleNamespace(recipe=chosen.recipe)], chosen
    assert stages._bundle_table(work).segmentation == "/mine"
    regions = ask(REGIONS)
    work.runs, work.request = [SimpleNamespace(recipe=regions.recipe)], regions
    assert stages._bundle_table(work).segmentation == ""


def test_a_bundle_that_is_whole_is_not_packaged_again(settings: Settings, tmp_path: Path) -> None:
    from types import SimpleNamespace

    from trainer.rebuild import stages
    from trainer.rebuild.folder import RebuildFolder

    folder = RebuildFolder(tmp_path)
    shutil.copytree(PHANTOM_BUNDLE, folder.bundle)
    work: Any = SimpleNamespace(folder=folder)
    assert stages.packaging(work) == {"bundle": read_manifest(PHANTOM_BUNDLE).key}
