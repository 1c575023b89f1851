"""The database did not take a film's result: is it away, is it another one, or is it this film?"""

from __future__ import annotations

import sqlite3

from sqlalchemy.exc import DBAPIError

from schema.database import Database, is_busy

#: SQLSTATE class of a statement that cannot be carried out, whatever its values: a table or a
#: column that is not there, or no right to it.
_CLASS_OF_STATEMENTS = "42"


def raise_unless_the_films(database: Database, error: Exception) -> None:
    """Raise ``error`` if no film's values are at fault, or what explains it.

    Raises
    ------
    sqlalchemy.exc.DBAPIError
        The database is away, or refuses the statement as such.
    schema.database.DatabaseVersionError
        The tables were upgraded meanwhile: what they refuse now is no proof against a film.
    """
    if isinstance(error, DBAPIError) and is_busy(error):
        raise error
    database.require_current()
    if is_general(error):
        raise error


def is_general(error: Exception) -> bool:
    """Whether every film would be refused: the database is away, or the statement cannot be carried out."""
    if not isinstance(error, DBAPIError):
        return False
    state = getattr(error.orig, "sqlstate", None) or ""
    code = getattr(error.orig, "sqlite_errorcode", None)
    return is_busy(error) or state.startswith(_CLASS_OF_STATEMENTS) or code == sqlite3.SQLITE_ERROR


def reason(error: Exception) -> str:
    """What was refused, in words that hold names of ours only: a driver's message may quote the values."""
    original = getattr(error, "orig", None) or error
    kind = type(original).__name__
    constraint = getattr(getattr(original, "diag", None), "constraint_name", None)
    if constraint:
        return f"{kind}: {constraint}"
    return f"{kind}: {original}" if isinstance(original, sqlite3.IntegrityError) else kind
