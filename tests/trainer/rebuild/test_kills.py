"""A rebuild whose process is killed, again and again, by SIGKILL: the same command finishes it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_recipes import FINDINGS, REGIONS, write_recipe

from schema.database import Database
from trainer.rebuild.ledger import list_rebuilds
from trainer.rebuild.run import STAGES
from worker.inference.registry import list_bundles
from worker.settings import Settings

ROOT = Path(__file__).resolve().parents[3]

#: Rebuilds, and kills its own process without warning at the chosen moment.
_KILLED = """
import json, os, signal, sys
from pathlib import Path
import torch
from trainer.rebuild.ledger import RebuildLedger
from trainer.rebuild.request import make_request
from trainer.rebuild.run import rebuild
from trainer.training.progress import TrainingProgress
from worker.settings import Settings

def die():
    os.kill(os.getpid(), signal.SIGKILL)

class Progress(TrainingProgress):
    def batch(self, pace):
        if moment == "mid-training" and pace.epoch == 2:
            die()

advance = RebuildLedger.advance

def advance_or_die(self, row, stage, results):
    if moment == f"done {row.stage}":
        die()
    row = advance(self, row, stage, results)
    if moment == f"noted {row.stage}":
        die()
    return row

if __name__ == "__main__":
    torch.set_num_threads(1)
    home, recipe, moment = sys.argv[1:]
    RebuildLedger.advance = advance_or_die
    settings = Settings(home=Path(home), disk_reserve=0)
    request = make_request(recipe, data="phantoms")
    print(json.dumps(rebuild(settings, request, progress=Progress(), replicates=20)))
"""


def rebuild_until(settings: Settings, recipe: Path, moment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", _KILLED, str(settings.home), str(recipe), moment],
        cwd=ROOT, capture_output=True, text=True, timeout=600,
    )  # fmt: skip


def check(settings: Settings, done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """It came to its end, once."""
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    database = Database(settings.url)
    try:
        (row,) = list_rebuilds(database)
        assert (str(row.state), row.bundle) == ("finished", report["bundle"])
        aliases = {entry.key: entry.aliases for entry in list_bundles(database, settings)}
        assert len(aliases) == 2 and aliases[report["bundle"]] == ("candidate",)
    finally:
        database.close()
    return report


def metrics_of(report: dict[str, Any]) -> str:
    (table,) = Path(report["folder"]).glob("runs/*/metrics.csv")
    return table.read_text()


@pytest.mark.timeout(900)
def test_killed_in_the_middle_of_training(settings: Settings, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, "tiny-findings", FINDINGS.replace("phantoms = 60", "phantoms = 40"))
    assert rebuild_until(settings, recipe, "mid-training").returncode == -signal.SIGKILL
    report = check(settings, rebuild_until(settings, recipe, "never"))
    assert len(metrics_of(report).splitlines()) == 1 + 3


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("text", [REGIONS, FINDINGS], ids=["regions", "findings"])
def test_killed_at_every_stage(settings: Settings, tmp_path: Path, text: str) -> None:
    recipe = write_recipe(tmp_path, "tiny", text)
    moments = ["mid-training", *(f"done {name}" for name, _ in STAGES), *(f"noted {name}" for name, _ in STAGES[1:])]
    for moment in sorted(moments, key=_when):
        killed = rebuild_until(settings, recipe, moment)
        assert killed.returncode == -signal.SIGKILL, (moment, killed.stderr)
    report = check(settings, rebuild_until(settings, recipe, "never"))
    quiet = tmp_path / "quiet"
    quiet.mkdir()
    (quiet / "site.key").write_text((settings.home / "site.key").read_text())
    undisturbed = check(Settings(home=quiet), rebuild_until(Settings(home=quiet), recipe, "never"))
    assert metrics_of(report) == metrics_of(undisturbed)
    assert report["comparison"]["figures"] == undisturbed["comparison"]["figures"]


def _when(moment: str) -> tuple[int, str]:
    """The order in which a rebuild comes to these moments."""
    names = [name for name, _ in STAGES]
    what, _, stage = moment.partition(" ")
    if moment == "mid-training":
        return names.index("training"), "b"
    return names.index(stage), "c" if what == "done" else "a"
