"""Text as every database takes it."""

from __future__ import annotations


def storable(text: str, length: int | None = None) -> str:
    """``text`` without what databases refuse, at most ``length`` characters.

    PostgreSQL takes no NUL, and neither it nor SQLite takes half a surrogate pair; a column of
    a given length is held to it by PostgreSQL. Headers of files can hold any of that.
    """
    if not text.isascii():
        text = text.encode("utf-8", "replace").decode("utf-8")
    return text.replace("\0", "")[:length]
