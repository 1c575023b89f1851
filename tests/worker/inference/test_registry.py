from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import select
from tiny_bundle import SIZE, make_bundle

from schema import tables
from schema.bundle import BundleError, read_manifest, write_manifest
from schema.database import Database
from schema.queries import bundle_aliases
from worker.errors import CarinaError, FilmError
from worker.inference.registry import (
    BundleEntry,
    add_bundle,
    bundle_folder,
    champion,
    find_bundle,
    list_bundles,
    promote_bundle,
    record_engine,
    roll_back,
)
from worker.settings import Settings, load_settings


def servable(bundle: Path) -> Path:
    """The bundle with preprocessing that ends at what its networks take."""
    manifest = read_manifest(bundle)
    steps = ({"step": "min_max"}, {"step": "resize", "height": SIZE, "width": SIZE})
    members = tuple(replace(member, preprocess=steps) for member in manifest.members)
    write_manifest(bundle, replace(manifest, members=members))
    return bundle


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    bundle = make_bundle(tmp_path / "bundle")
    return load_settings({"CARINA_HOME": str(tmp_path / "home"), "CARINA_BUNDLE": str(bundle)})


@pytest.fixture
def ledger(settings: Settings, database: Database) -> Database:
    settings.home.mkdir()
    return database


def test_the_first_bundle_is_registered_once_and_kept_here(ledger: Database, settings: Settings) -> None:
    first = champion(ledger, settings)
    assert champion(ledger, settings) == first
    assert first.directory == bundle_folder(settings, first.sha256)
    with ledger.read() as connection:
        assert connection.scalar(select(tables.bundle_alias.c.alias)) == "champion"
        assert connection.scalar(select(tables.audit_event.c.action)) == "promote"
    shutil.rmtree(settings.bundle)
    assert champion(ledger, settings) == first


def test_a_second_machine_that_brings_the_same_bundle_can_serve(
    ledger: Database, settings: Settings, tmp_path: Path
) -> None:
    first = champion(ledger, settings)
    other = load_settings({"CARINA_HOME": str(tmp_path / "other"), "CARINA_BUNDLE": settings.bundle})
    second = champion(ledger, other)
    assert (second.id, second.sha256) == (first.id, first.sha256)
    assert second.directory.is_relative_to(other.home)
    assert (second.directory / "bundle.json").is_file()


def test_a_machine_without_the_files_says_which_bundle_it_lacks(
    ledger: Database, settings: Settings, tmp_path: Path
) -> None:
    champion(ledger, settings)
    other = make_bundle(tmp_path / "newer", version="2")
    elsewhere = load_settings({"CARINA_HOME": str(tmp_path / "other"), "CARINA_BUNDLE": str(other)})
    with pytest.raises(FilmError, match=":1,") as refused:
        champion(ledger, elsewhere)
    assert refused.value.code == "BUNDLE_MISSING"


def test_a_first_bundle_whose_name_is_taken_says_what_to_do(
    ledger: Database, settings: Settings, tmp_path: Path
) -> None:
    other = servable(make_bundle(tmp_path / "other", temperature=1.5))
    added = add_bundle(ledger, settings, other, actor="test")
    with pytest.raises(BundleError, match=f"carina bundle promote {added.key}"):
        champion(ledger, settings)
    promote_bundle(ledger, settings, added.key, actor="test")
    assert champion(ledger, settings).sha256 == added.sha256


def test_an_engine_is_noted_once(ledger: Database, settings: Settings) -> None:
    registered = champion(ledger, settings)
    description = {"backend": "openvino", "backend_version": "1", "device": "CPU", "precision": "fp32", "members": {}}
    for _ in range(2):
        record_engine(ledger, registered.id, description, {"films": 2})
    with ledger.read() as connection:
        assert connection.execute(select(tables.engine.c.precision, tables.engine.c.parity)).all() == [
            ("fp32", {"films": 2})
        ]


def audit(ledger: Database) -> list[tuple[str, str, str, dict[str, str]]]:
    event = tables.audit_event
    with ledger.read() as connection:
        rows = connection.execute(
            select(event.c.actor, event.c.action, event.c.subject, event.c.detail).order_by(event.c.id)
        )
        return [tuple(row) for row in rows]


def aliases(ledger: Database) -> dict[str, str]:
    with ledger.read() as connection:
        return bundle_aliases(connection)


@pytest.fixture
def newer(tmp_path: Path) -> Path:
    return servable(make_bundle(tmp_path / "newer", version="2"))


def put_into_service(ledger: Database, settings: Settings, folder: Path) -> BundleEntry:
    key = add_bundle(ledger, settings, folder, actor="ann").key
    return promote_bundle(ledger, settings, key, actor="ann")


class TestAdding:
    def test_a_new_bundle_is_the_candidate_and_serves_nothing(
        self, ledger: Database, settings: Settings, newer: Path
    ) -> None:
        first = champion(ledger, settings)
        entry = add_bundle(ledger, settings, newer, actor="ann")
        assert (entry.key, entry.aliases, entry.here) == ("tiny:2", ("candidate",), True)
        assert champion(ledger, settings) == first
        assert aliases(ledger) == {"champion": "tiny:1", "candidate": "tiny:2"}
        assert audit(ledger)[1:] == [("ann", "add", "tiny:2", {"sha256": entry.sha256})]

    def test_to_a_new_database_it_can_be_the_first_to_serve(
        self, ledger: Database, settings: Settings, newer: Path
    ) -> None:
        entry = put_into_service(ledger, settings, newer)
        assert aliases(ledger) == {"champion": "tiny:2"}
        assert champion(ledger, settings).sha256 == entry.sha256
        with pytest.raises(CarinaError, match=r"no previous bundle .* tiny:2 is the first .* promote NAME:VERSION"):
            roll_back(ledger, settings, actor="ann")

    def test_without_any_there_is_nothing_to_go_back_to(self, ledger: Database, settings: Settings) -> None:
        with pytest.raises(CarinaError, match="none was put into service yet"):
            roll_back(ledger, settings, actor="ann")

    def test_twice_changes_nothing(self, ledger: Database, settings: Settings, newer: Path) -> None:
        put_into_service(ledger, settings, newer)
        events = audit(ledger)
        put_into_service(ledger, settings, newer)
        assert audit(ledger) == events
        assert [entry.key for entry in list_bundles(ledger, settings)] == ["tiny:2"]

    def test_only_what_the_manifest_names_is_copied(self, ledger: Database, settings: Settings, newer: Path) -> None:
        (newer / "notes about patients.txt").write_text("no part of it")
        entry = add_bundle(ledger, settings, newer, actor="ann")
        copied = bundle_folder(settings, entry.sha256)
        assert {path.name for path in copied.iterdir()} == {"bundle.json", *entry.manifest["files"]}
        assert not list(copied.parent.glob(".copy-*"))

    def test_files_that_were_lost_or_damaged_are_mended(
        self, ledger: Database, settings: Settings, newer: Path
    ) -> None:
        entry = add_bundle(ledger, settings, newer, actor="ann")
        kept = bundle_folder(settings, entry.sha256)
        (kept / "regions-0.onnx").write_bytes(b"torn")
        add_bundle(ledger, settings, newer, actor="ann")
        assert read_manifest(kept).key == "tiny:2"
        shutil.rmtree(kept)
        assert not list_bundles(ledger, settings)[0].here
        assert add_bundle(ledger, settings, newer, actor="ann").here

    def test_another_bundle_of_the_same_name_and_version_is_refused(
        self, ledger: Database, settings: Settings, newer: Path, tmp_path: Path
    ) -> None:
        add_bundle(ledger, settings, newer, actor="ann")
        other = servable(make_bundle(tmp_path / "other", version="2", temperature=2.0))
        with pytest.raises(BundleError, match=r"registered as tiny:2 .*another version: carina package"):
            add_bundle(ledger, settings, other, actor="ann")
        assert aliases(ledger) == {"candidate": "tiny:2"}

    def test_a_damaged_bundle_leaves_no_trace(self, ledger: Database, settings: Settings, newer: Path) -> None:
        (newer / "regions-0.onnx").write_bytes(b"torn")
        with pytest.raises(BundleError, match=r"regions-0\.onnx is not the file"):
            add_bundle(ledger, settings, newer, actor="ann")
        assert list_bundles(ledger, settings) == []
        assert not (settings.home / "bundles").exists()

    @pytest.mark.parametrize(
        ("what", "words"),
        [
            ("preprocess", "member regions-0: Preprocessing step 1 is 'equalize'"),
            ("postprocess", "no setting 'carina'"),
        ],
    )
    def test_what_no_worker_could_follow_is_refused(
        self, ledger: Database, settings: Settings, newer: Path, what: str, words: str
    ) -> None:
        manifest = read_manifest(newer)
        if what == "preprocess":
            members = tuple(replace(member, preprocess=({"step": "equalize"},)) for member in manifest.members)
            manifest = replace(manifest, members=members)
        else:
            manifest = replace(manifest, postprocess={"carina": 0.5})
        write_manifest(newer, manifest)
        with pytest.raises(BundleError, match=words):
            add_bundle(ledger, settings, newer, actor="ann")
        assert list_bundles(ledger, settings) == []


class TestPromoting:
    def test_there_and_back_and_there_again(self, ledger: Database, settings: Settings, newer: Path) -> None:
        champion(ledger, settings)
        add_bundle(ledger, settings, newer, actor="ann")
        entry = promote_bundle(ledger, settings, "tiny:2", actor="bob")
        assert entry.aliases == ("champion",)
        assert aliases(ledger) == {"champion": "tiny:2", "previous": "tiny:1"}
        assert champion(ledger, settings).sha256 == entry.sha256
        assert roll_back(ledger, settings, actor="cid").key == "tiny:1"
        assert aliases(ledger) == {"champion": "tiny:1", "previous": "tiny:2"}
        assert roll_back(ledger, settings, actor="cid").key == "tiny:2"
        assert audit(ledger)[2:] == [
            ("bob", "promote", "tiny:2", {"instead_of": "tiny:1"}),
            ("cid", "rollback", "tiny:1", {"instead_of": "tiny:2"}),
            ("cid", "rollback", "tiny:2", {"instead_of": "tiny:1"}),
        ]

    def test_of_another_bundle_leaves_the_candidate(
        self, ledger: Database, settings: Settings, newer: Path, tmp_path: Path
    ) -> None:
        champion(ledger, settings)
        put_into_service(ledger, settings, newer)
        add_bundle(ledger, settings, servable(make_bundle(tmp_path / "third", version="3")), actor="ann")
        promote_bundle(ledger, settings, "tiny:1", actor="ann")
        assert aliases(ledger) == {"champion": "tiny:1", "previous": "tiny:2", "candidate": "tiny:3"}

    def test_an_unknown_name_is_told_what_there_is(self, ledger: Database, settings: Settings) -> None:
        champion(ledger, settings)
        with pytest.raises(CarinaError, match="no bundle 'tiny:9'; known are: tiny:1"):
            promote_bundle(ledger, settings, "tiny:9", actor="ann")
        assert find_bundle(ledger, settings, "tiny:1").manifest["name"] == "tiny"
