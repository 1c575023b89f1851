"""The other ends of the line: archives and PACS that results go to and films are fetched from."""

from __future__ import annotations

import importlib.util

from worker.errors import CarinaError

_PACKAGES = ("highdicom", "pynetdicom", "requests")


def require_packages() -> None:
    """See that what speaks to other systems is installed.

    Raises
    ------
    CarinaError
        It is not: what to run.
    """
    if any(importlib.util.find_spec(name) is None for name in _PACKAGES):
        raise CarinaError("This needs packages that are not installed. Run: pip install 'carina-cxr[pacs]'")
