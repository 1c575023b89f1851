"""One rebuild from its beginning, or from where it stopped, to its end."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from schema.bundle import BundleError
from schema.database import Database
from trainer.errors import RunError
from trainer.rebuild import stages
from trainer.rebuild.folder import read_json, write_json
from trainer.rebuild.ledger import Rebuild, RebuildLedger
from trainer.rebuild.place import trainers_place
from trainer.rebuild.report import write_report
from trainer.rebuild.request import Request
from trainer.rebuild.stages import Stage, Work
from trainer.training.progress import TrainingProgress, spoken
from worker.bootstrap import REPLICATES
from worker.errors import CarinaError, FilmError, advice
from worker.inference.registry import champion
from worker.service import open_database
from worker.settings import Settings

#: What is done, in this order. The report comes after the last of them and ends the rebuild.
STAGES: tuple[tuple[str, Stage], ...] = (
    ("films", stages.films),
    ("training", stages.training),
    ("packaging", stages.packaging),
    ("evaluation", stages.evaluation),
    ("engines", stages.engines),
    ("registration", stages.registration),
)
REPORT = "report"
NAMES: tuple[str, ...] = (*(name for name, _ in STAGES), REPORT)


def rebuild(
    settings: Settings,
    request: Request,
    *,
    fresh: bool = False,
    progress: TrainingProgress | None = None,
    replicates: int = REPLICATES,
) -> dict[str, Any]:
    """Do what is asked for, or go on with it; nothing is ever promoted.

    Parameters
    ----------
    fresh
        Begin anew whatever was begun.
    replicates
        Bootstrap replicates of every interval.

    Returns
    -------
    What ``report.json`` in the rebuild's folder holds.

    Raises
    ------
    PlaceTakenError
        A rebuild is running.
    CarinaError, schema.bundle.BundleError, FilmError
        It cannot go on; the row says why too. The same call goes on from there.
    """
    with open_database(settings) as database, trainers_place(database, settings) as place:
        ledger = RebuildLedger(database, place)
        row = begin(database, settings, ledger, request, fresh=fresh)
        return carry_out(database, settings, ledger, row, request, progress=progress, replicates=replicates)


def begin(database: Database, settings: Settings, ledger: RebuildLedger, request: Request, *, fresh: bool) -> Rebuild:
    """The row of what is asked for, made or found: see :meth:`RebuildLedger.open`."""

    def folder(number: int) -> Path:
        return Path(request.out) if request.out else settings.home / "rebuilds" / f"{number:04d}-{request.recipe.name}"

    return ledger.open(request, NAMES[0], folder, champion_id=champion(database, settings).id, fresh=fresh)


def carry_out(
    database: Database,
    settings: Settings,
    ledger: RebuildLedger,
    row: Rebuild,
    request: Request,
    *,
    progress: TrainingProgress | None = None,
    replicates: int = REPLICATES,
) -> dict[str, Any]:
    """Do the stages that are left; raises as :func:`rebuild`."""
    progress = progress or TrainingProgress()
    work = Work(settings, database, request, row, progress, replicates)
    begun = "Going on with" if row.stage != NAMES[0] or row.starts > 1 else "Beginning"
    progress.say(f"{begun} rebuild {row.id} of {row.recipe}: {row.folder}")
    try:
        _prepare(work)
        for place in range(NAMES.index(row.stage), len(STAGES)):
            name, stage = STAGES[place]
            started = time.monotonic()
            found = stage(work)
            seconds = {**work.row.results.get("seconds", {}), name: round(time.monotonic() - started, 1)}
            work.row = ledger.advance(work.row, NAMES[place + 1], {**found, "seconds": seconds})
            progress.say(f"{name.capitalize()} done in {spoken(time.monotonic() - started)}")
        report = write_report(work.folder, work.row, {run.recipe.name: run.data["origin"] for run in work.runs})
    except FilmError as error:
        ledger.fail(work.row, f"{error} {advice(error.code)}")
        raise
    except (CarinaError, BundleError) as error:
        ledger.fail(work.row, str(error))
        raise
    except OSError as error:
        reason = RunError(f"Rebuild {row.id} stopped in stage {work.row.stage}: {error.strerror or error}.")
        ledger.fail(work.row, str(reason))
        raise reason from error
    work.folder.tidy()
    ledger.finish(work.row, int(work.row.results["bundle_id"]), report["outcome"], {})
    return report


def _prepare(work: Work) -> None:
    """Make the folder; refuse one that holds other things."""
    folder = work.folder
    if work.row.stage == NAMES[0] and work.row.starts == 1:
        # It begins, or goes on after a failure that somebody mended: with labels or films, perhaps.
        folder.films.unlink(missing_ok=True)
    mark = {"rebuild": work.row.id, "started_at": work.row.started_at.isoformat()}
    if folder.mark.is_file() and read_json(folder.mark) == mark:
        return
    if folder.path.is_dir() and any(folder.path.iterdir()):
        raise RunError(f"{folder.path} holds other things than this rebuild: name another folder for it.")
    write_json(folder.mark, mark)
