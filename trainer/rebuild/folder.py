"""What a rebuild keeps on disk.

=================  ==========================================================================
rebuild.json       whose folder this is
films.json         which films of the database were chosen, and what is true of them
runs/RECIPE/       a run folder for each recipe (:mod:`trainer.training.run_folder`)
bundle/            the bundle
evaluation/        candidate/ and champion/ on the same films
comparison.json    the candidate's figures beside the champion's
engines.json       what was compiled, and how it passed the parity gate
report.md          all of it in words; names no film and no patient
report.json        the same for programs
cache/, unpacked/  preprocessed films, and those from archives; deleted at the end
=================  ==========================================================================
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.evaluation.tables import as_json
from trainer.training.run_folder import write_whole


@dataclass(frozen=True)
class RebuildFolder:
    """Names of a rebuild folder's files."""

    path: Path

    @property
    def mark(self) -> Path:
        """Whose folder this is."""
        return self.path / "rebuild.json"

    @property
    def films(self) -> Path:
        """The chosen films of the database."""
        return self.path / "films.json"

    @property
    def cache(self) -> Path:
        """Preprocessed films, shared by the runs."""
        return self.path / "cache"

    @property
    def unpacked(self) -> Path:
        """Films that lie in archives."""
        return self.path / "unpacked"

    @property
    def bundle(self) -> Path:
        """The bundle."""
        return self.path / "bundle"

    @property
    def evaluation(self) -> Path:
        """Both bundles' evaluations."""
        return self.path / "evaluation"

    @property
    def comparison(self) -> Path:
        """Both bundles' figures."""
        return self.path / "comparison.json"

    @property
    def engines(self) -> Path:
        """What was compiled."""
        return self.path / "engines.json"

    @property
    def report(self) -> Path:
        """The report for people."""
        return self.path / "report.md"

    @property
    def summary(self) -> Path:
        """The report for programs."""
        return self.path / "report.json"

    def run(self, recipe: str) -> Path:
        """The run folder of a recipe."""
        return self.path / "runs" / recipe

    def tidy(self) -> None:
        """Delete what held films' pictures; what was learned and measured stays."""
        for folder in (self.cache, self.unpacked, *self.evaluation.glob("*/cache")):
            shutil.rmtree(folder, ignore_errors=True)


def write_json(path: Path, content: Any) -> None:
    """Write plain values so that the file is there whole or not at all; NaN becomes null."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, as_json(content) + "\n")


def read_json(path: Path) -> Any:
    """What :func:`write_json` wrote."""
    return json.loads(path.read_text("utf-8"))
