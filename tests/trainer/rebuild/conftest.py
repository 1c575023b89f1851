"""A home folder, recipes that train in seconds, and a database in which nothing is slow."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lightning")

import torch
from phantom_bundle import PHANTOM_BUNDLE
from tiny_recipes import FINDINGS, write_recipe

from trainer.rebuild.request import Request, make_request
from worker.settings import Settings

MakeRequest = Callable[..., Request]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A home with a site key that is always the same, so that the same patients are held out."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "site.key").write_text("5a" * 32)
    return Settings(home=home, disk_reserve=0, bundle=str(PHANTOM_BUNDLE))


@pytest.fixture
def ask(tmp_path: Path) -> MakeRequest:
    """Makes the request for the tiny findings."""
    recipe = write_recipe(tmp_path, "tiny-findings", FINDINGS)

    def request(text: str = "", **options: Any) -> Request:
        path = write_recipe(tmp_path, "tiny-other", text) if text else recipe
        return make_request(path, **{"data": "phantoms", **options})

    return request
