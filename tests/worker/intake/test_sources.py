from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.errors import CarinaError, FilmError
from worker.intake.sources import Roots, resolve, stored_path, system_path, trouble
from worker.queue.outcomes import SourceReference
from worker.settings import Settings


def reference(path: Path, root: str, stored: str, **changes: int | str) -> SourceReference:
    status = path.stat()
    values = {"member": "", "size": status.st_size, "modified_ns": status.st_mtime_ns, **changes}
    return SourceReference(root, stored, **values)


@given(st.binary(min_size=1, max_size=60).filter(lambda name: b"\0" not in name))
def test_any_file_name_survives_storage(name: bytes) -> None:
    path = os.fsdecode(name)
    stored = stored_path(path)
    stored.encode("utf-8")
    assert system_path(stored) == path


def test_a_usual_path_is_stored_as_it_is() -> None:
    assert stored_path("2026/Ärzte/film 1.dcm") == "2026/Ärzte/film 1.dcm"


def test_the_longest_root_wins() -> None:
    roots = Roots(Settings(roots="local=/,archive=/data/archive,data=/data"))
    assert roots.locate("/data/archive/2026/x.dcm") == ("archive", "2026/x.dcm")
    assert roots.locate("/data/other/x.dcm") == ("data", "other/x.dcm")
    assert roots.locate("/data/archives/x.dcm") == ("data", "archives/x.dcm")
    assert roots.locate("/data") == ("data", ".")
    assert roots.locate("/home/x.dcm") == ("local", "home/x.dcm")


def test_a_path_under_no_root_is_refused_without_naming_it() -> None:
    with pytest.raises(CarinaError, match="CARINA_ROOTS") as caught:
        Roots(Settings(roots="data=/data")).locate("/secret/name.dcm")
    assert "secret" not in str(caught.value)


def test_resolve_finds_what_was_located(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/f\xff%20.dcm"))
    path.write_bytes(b"x")
    settings = Settings(roots=f"here={tmp_path}")
    root, stored = Roots(settings).locate(str(path))
    assert resolve(settings, reference(path, root, stored)) == path


@pytest.mark.parametrize(
    ("changes", "code"),
    [({"size": 5}, "SOURCE_CHANGED"), ({"modified_ns": 1}, "SOURCE_CHANGED"), ({"path": "b"}, "SOURCE_MISSING"),
     ({"root": "there"}, "SOURCE_MISSING")],
)  # fmt: skip
def test_resolve_says_what_is_wrong(tmp_path: Path, changes: dict[str, int | str], code: str) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"x")
    values = {"root": "here", "path": "a", "member": "", "size": 1, "modified_ns": path.stat().st_mtime_ns, **changes}
    with pytest.raises(FilmError) as caught:
        resolve(Settings(roots=f"here={tmp_path}"), SourceReference(**values))
    assert caught.value.code == code
    assert str(tmp_path) not in str(caught.value)


def test_a_members_size_is_not_that_of_its_archive(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    path.write_bytes(b"x")
    found = resolve(Settings(roots=f"here={tmp_path}"), reference(path, "here", "a.zip", member="m", size=77))
    assert found == path


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (FileNotFoundError(2, "x", "/secret"), "SOURCE_MISSING"),
        (NotADirectoryError(20, "x"), "SOURCE_MISSING"),
        (PermissionError(13, "x"), "NO_PERMISSION"),
        (OSError(40, "x"), "DIRECTORY_LOOP"),
        (OSError(5, "x", "/secret"), "READ_ERROR"),
    ],
)
def test_the_operating_systems_words_become_codes(error: OSError, code: str) -> None:
    found, detail = trouble(error)
    assert found == code and "secret" not in detail
