from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_bundle import make_bundle

from schema.bundle import (
    MANIFEST_NAME,
    BundleError,
    Manifest,
    is_name,
    read_manifest,
    sha256_of,
    write_manifest,
)


def test_masks_of_different_sizes_are_refused(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "pair", segmenters=2)
    manifest = read_manifest(bundle)
    first, second, *others = manifest.members
    write_manifest(bundle, replace(manifest, members=(first, replace(second, height=8), *others)))
    with pytest.raises(BundleError, match=r"grids of .*8 x .* averaged pixel by pixel"):
        read_manifest(bundle)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "bundle")


def with_twin(bundle: Path, *, listed: bool = True, name: str = "regions-0-int8.onnx") -> Manifest:
    """The manifest, its first member with an 8-bit twin, whose file is there."""
    manifest = read_manifest(bundle)
    if not name.startswith("/"):
        (bundle / name).write_bytes(b"a twin")
    files = {**manifest.files, **({name: sha256_of(bundle / name)} if listed else {})}
    first = replace(manifest.members[0], variants={"int8": name})
    changed = replace(manifest, members=(first, *manifest.members[1:]), files=files)
    write_manifest(bundle, changed)
    return changed


def test_what_a_region_means_here_is_kept(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    first, *others = manifest.regions
    noted = replace(manifest, regions=(replace(first, note="all that is no other"), *others))
    write_manifest(bundle, noted)
    assert read_manifest(bundle) == noted


def test_a_manifest_of_before_variants_reads_and_writes_as_it_was(bundle: Path) -> None:
    before = (bundle / MANIFEST_NAME).read_bytes()
    manifest = read_manifest(bundle)
    assert b"variants" not in before
    assert all(not member.variants for member in manifest.members)
    write_manifest(bundle, manifest)
    assert (bundle / MANIFEST_NAME).read_bytes() == before


def test_a_variant_is_remembered_and_its_file_verified(bundle: Path) -> None:
    written = with_twin(bundle)
    assert read_manifest(bundle) == written
    assert json.loads((bundle / MANIFEST_NAME).read_text())["format"] == 1
    assert written.members[0].networks == ("regions-0.onnx", "regions-0-int8.onnx")
    (bundle / "regions-0-int8.onnx").write_bytes(b"another")
    with pytest.raises(BundleError, match=r"regions-0-int8\.onnx is not the file"):
        read_manifest(bundle)


def test_a_variant_without_sha256_is_refused(bundle: Path) -> None:
    with_twin(bundle, listed=False)
    with pytest.raises(BundleError, match=r"no SHA-256 is given for regions-0-int8\.onnx"):
        read_manifest(bundle)


def test_a_variant_outside_the_bundle_is_refused(bundle: Path) -> None:
    with_twin(bundle, listed=False, name="/etc/passwd")
    with pytest.raises(BundleError, match="leaves the bundle"):
        read_manifest(bundle)


@pytest.mark.parametrize(
    ("text", "good"), [("chest-1.2_b", True), ("", False), ("Chest", False), ("-a", False), ("a" * 64, False)]
)
def test_names(text: str, good: bool) -> None:
    assert is_name(text) is good
