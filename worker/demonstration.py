"""The demonstration: synthetic radiographs in a folder of their own."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from worker.errors import CarinaError
from worker.phantom import write_demo_set
from worker.settings import Settings, load_settings

_MARK = ".carina-demo"


def prepare_demo(folder: Path, seed: int) -> Settings:
    """Make ``folder`` with fresh films and an empty home; returns the settings to use there.

    The settings are put into the environment too, for the worker process.

    Raises
    ------
    CarinaError
        ``folder`` holds something that an earlier demonstration did not make.
    """
    if folder.exists() and any(folder.iterdir()) and not (folder / _MARK).is_file():
        raise CarinaError(f"{folder} is not empty and not from an earlier demonstration: name another folder.")
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "films").mkdir(parents=True)
    (folder / _MARK).touch()
    write_demo_set(folder / "films", seed)
    os.environ["CARINA_HOME"] = str(folder / "home")
    os.environ.pop("CARINA_DATABASE_URL", None)
    return load_settings()
