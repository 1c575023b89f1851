from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from trainer.data.hashes import FileHashes
from trainer.errors import DataError


def test_hashes_are_those_of_the_bytes(tmp_path: Path) -> None:
    path = tmp_path / "film"
    path.write_bytes(b"abc" * 1000)
    with FileHashes(tmp_path / "hashes.json") as hashes:
        assert hashes.of([path, path]) == {path: hashlib.sha256(b"abc" * 1000).hexdigest()}


def test_a_file_is_read_again_only_when_it_changed(tmp_path: Path) -> None:
    path = tmp_path / "film"
    path.write_bytes(b"one")
    with FileHashes(tmp_path / "hashes.json") as hashes:
        first = hashes.of([path])[path]
    facts = path.stat()
    path.write_bytes(b"two")
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    with FileHashes(tmp_path / "hashes.json") as hashes:
        assert hashes.of([path])[path] == first
        os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns + 1))
        assert hashes.of([path])[path] == hashlib.sha256(b"two").hexdigest()


def test_a_damaged_memory_only_costs_time(tmp_path: Path) -> None:
    path = tmp_path / "film"
    path.write_bytes(b"one")
    (tmp_path / "hashes.json").write_text('{"half')
    with FileHashes(tmp_path / "hashes.json") as hashes:
        assert hashes.of([path])[path] == hashlib.sha256(b"one").hexdigest()


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with FileHashes(tmp_path / "hashes.json") as hashes, pytest.raises(DataError, match=r"folder \(.*none \(No such"):
        hashes.of([tmp_path / "folder", tmp_path / "none"])
