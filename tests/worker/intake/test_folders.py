from __future__ import annotations

import os
import socket
import zipfile
from collections import Counter
from pathlib import Path

import pytest
from intake_rows import film_bytes, write_film

from worker.intake import folders
from worker.intake.folders import FoundFile, Item, LeftOut, ScanProblem, scan
from worker.intake.sources import Roots, system_path
from worker.settings import Settings

ROOTS = Roots(Settings())


def items(*paths: Path) -> list[Item]:
    return list(scan(ROOTS, paths))


def names(found: list[Item], folder: Path) -> Counter[str]:
    return Counter(
        os.path.relpath(item.path, folder) + (f"!{item.source.member}" if item.source.member else "")
        for item in found
        if isinstance(item, FoundFile)
    )


def problems(found: list[Item]) -> Counter[str]:
    return Counter(item.code for item in found if isinstance(item, ScanProblem))


def test_files_in_folders_at_any_depth(tmp_path: Path) -> None:
    for name in ("a", "b/c", "b/d/e/f"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert names(items(tmp_path), tmp_path) == Counter(["a", "b/c", "b/d/e/f"])


def test_a_file_is_named_by_root_path_size_and_time(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"xyz")
    (item,) = items(path)
    assert isinstance(item, FoundFile)
    assert item.source.root == "local" and "/" + system_path(item.source.path) == str(path)
    assert (item.source.size, item.source.modified_ns) == (3, path.stat().st_mtime_ns)


def test_relative_and_untidy_paths_are_the_same_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "a").write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    found = items(Path("sub/../a"), tmp_path / "a")
    assert found[0] == found[1]


def test_hidden_partial_and_special_files_are_left_out(tmp_path: Path) -> None:
    for name in ("ok", ".hidden", "x.part", "x.TMP", "x.dcm~", "x.crdownload", "x.filepart"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / ".snapshot").mkdir()
    (tmp_path / ".snapshot" / "old").write_bytes(b"x")
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(tmp_path)  # the name of a socket must be short
        try:
            server.bind("socket")
        finally:
            os.chdir(here)
    found = items(tmp_path)
    assert names(found, tmp_path) == Counter(["ok"])
    assert Counter(item for item in found if isinstance(item, LeftOut)) == {LeftOut.PARTIAL: 5, LeftOut.SPECIAL: 2}


def test_what_is_given_by_name_is_taken(tmp_path: Path) -> None:
    path = tmp_path / ".film.tmp"
    path.write_bytes(b"x")
    assert names(items(path), tmp_path) == Counter([".film.tmp"])


def test_a_folder_that_contains_itself_is_named_and_skipped(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "film").write_bytes(b"x")
    (tmp_path / "a" / "again").symlink_to(tmp_path)
    (tmp_path / "a" / "self").symlink_to("self")
    found = items(tmp_path)
    assert names(found, tmp_path) == Counter(["a/film"])
    assert problems(found) == Counter({"DIRECTORY_LOOP": 2})


def test_links_are_followed_each_target_once(tmp_path: Path) -> None:
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    (outside / "deep").mkdir(parents=True)
    (outside / "deep" / "film").write_bytes(b"x")
    inside.mkdir()
    for name in ("one", "two", "three"):
        (inside / name).symlink_to(outside)
    (inside / "file").symlink_to(outside / "deep" / "film")
    found = names(items(inside), inside)
    assert found["file"] == 1 and found.total() == 2


def test_links_among_siblings_do_not_multiply(tmp_path: Path) -> None:
    folders_ = [tmp_path / str(number) for number in range(8)]
    for folder in folders_:
        folder.mkdir()
        (folder / "film").write_bytes(b"x")
    for folder in folders_:
        for other in folders_:
            (folder / f"to{other.name}").symlink_to(other)
    found = items(tmp_path)
    assert names(found, tmp_path).total() <= 16
    assert {str(folder / "film") for folder in folders_} <= {item.path for item in found if isinstance(item, FoundFile)}


def test_a_broken_link_is_a_missing_source(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    assert problems(items(tmp_path)) == Counter(["SOURCE_MISSING"])


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind root")
def test_a_folder_that_may_not_be_read(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o000)
    (tmp_path / "film").write_bytes(b"x")
    found = items(tmp_path)
    (tmp_path / "closed").chmod(0o700)
    assert problems(found) == Counter(["NO_PERMISSION"]) and names(found, tmp_path) == Counter(["film"])


def test_a_folder_that_refuses_to_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "closed").mkdir()
    (tmp_path / "film").write_bytes(b"x")
    real = os.scandir

    def scandir(path: str) -> object:
        if path.endswith("closed"):
            raise PermissionError(13, "no", path)
        return real(path)

    monkeypatch.setattr(folders.os, "scandir", scandir)
    found = items(tmp_path)
    assert problems(found) == Counter(["NO_PERMISSION"]) and names(found, tmp_path) == Counter(["film"])


def test_a_very_deep_folder_keeps_few_folders_open(tmp_path: Path) -> None:
    folder = tmp_path
    for _ in range(300):
        folder = folder / "d"
        folder.mkdir()
    (folder / "film").write_bytes(b"x")
    most = 0
    for _ in scan(ROOTS, [tmp_path]):
        most = max(most, len(list(Path("/proc/self/fd").iterdir())))
    assert 0 < most < 200


def test_a_path_too_long_for_the_system_is_a_problem_not_an_end(tmp_path: Path) -> None:
    here = Path.cwd()
    top = tmp_path / "top"
    top.mkdir()
    (tmp_path / "film").write_bytes(b"x")
    os.chdir(top)
    try:
        for _ in range(20):
            Path("d" * 250).mkdir()
            os.chdir("d" * 250)
    finally:
        os.chdir(here)
    found = items(tmp_path)
    assert problems(found) == Counter(["READ_ERROR"]) and names(found, tmp_path) == Counter(["film"])


def test_a_folder_is_streamed_not_listed(tmp_path: Path) -> None:
    for number in range(50):
        (tmp_path / str(number)).write_bytes(b"x")
    stream = scan(ROOTS, [tmp_path])
    first = next(stream)
    for number in range(50):
        (tmp_path / str(number)).unlink(missing_ok=True)
    assert isinstance(first, FoundFile)
    # The rest is looked at only now: it has vanished, which stops nothing.
    assert all(isinstance(item, FoundFile | ScanProblem) for item in stream)


def test_members_of_an_archive(tmp_path: Path) -> None:
    path = tmp_path / "films.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.mkdir("sub")
        archive.writestr("sub/a.dcm", film_bytes("2.25.1"))
        archive.writestr("README", "text")
        archive.writestr("sub/.DS_Store", "x")
    found = items(tmp_path)
    assert names(found, tmp_path) == Counter(["films.zip!sub/a.dcm", "films.zip!README"])
    assert all(item.source.modified_ns == path.stat().st_mtime_ns for item in found)


def test_of_two_members_of_one_name_the_last_counts(tmp_path: Path) -> None:
    path = tmp_path / "films.zip"
    with zipfile.ZipFile(path, "w") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("a", "x")
        archive.writestr("a", "xyz")
    (item,) = items(path)
    assert isinstance(item, FoundFile) and item.source.size == 3


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 and then nonsense", b"text"])
def test_a_damaged_archive_is_one_problem(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "films.zip").write_bytes(content)
    assert problems(items(tmp_path)) == Counter(["BAD_ARCHIVE"])


def test_encrypted_members_are_counted_in_one_problem(tmp_path: Path) -> None:
    path = tmp_path / "films.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a", "x")
        archive.writestr("b", "x")
    data = bytearray(path.read_bytes())
    place = data.index(b"PK\x01\x02")
    data[place + 8] |= 1
    path.write_bytes(data)
    found = items(path)
    assert names(found, tmp_path) == Counter(["films.zip!b"])
    assert [item.detail for item in found if isinstance(item, ScanProblem)] == ["1 members are encrypted"]


def test_an_archive_is_known_by_content_only_where_it_is_given(tmp_path: Path) -> None:
    path = tmp_path / "films"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a", "x")
    assert names(items(path), tmp_path) == Counter(["films!a"])
    assert names(items(tmp_path), tmp_path) == Counter(["films"])


def test_a_film_named_zip_is_a_film(tmp_path: Path) -> None:
    write_film(tmp_path / "film.zip", "2.25.1")
    assert names(items(tmp_path), tmp_path) == Counter(["film.zip"])


def test_file_names_of_any_bytes(tmp_path: Path) -> None:
    for name in (b"\xff\xfe", b"%41", "Röntgen".encode(), b"new\nline"):
        (Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))).write_bytes(b"x")
    found = [item for item in items(tmp_path) if isinstance(item, FoundFile)]
    assert len(found) == 4
    assert all("/" + system_path(item.source.path) == item.path for item in found)
    assert len({item.source.path.encode("utf-8") for item in found}) == 4
