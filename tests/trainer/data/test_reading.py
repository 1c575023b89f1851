from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from trainer.data import reading
from trainer.data.reading import Film, FilmPlan, read_films
from trainer.data.records import phantom_dataset
from trainer.errors import DataError

PLAN = FilmPlan(({"step": "resize", "height": 32, "width": 32},), ("background", "left_lung"))


def _die(_: Any) -> None:
    os._exit(1)


def test_a_process_that_dies_names_what_it_may_have_died_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(reading, "_PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr(reading, "_start", _die)
    films = read_films(phantom_dataset(4).records, PLAN, 2)
    with pytest.raises(DataError, match=r"died.*phantom-000000, phantom-000001"):
        next(films)


def test_closing_early_reads_no_further() -> None:
    films = read_films(phantom_dataset(400).records, PLAN, 1)
    assert isinstance(next(films), Film)
    films.close()
    assert list(films) == []
