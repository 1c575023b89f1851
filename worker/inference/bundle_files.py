"""A bundle's files: are they whole, could a worker follow what they ask for, and how are they kept here?"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from schema.bundle import MANIFEST_NAME, BundleError, Manifest, read_manifest, sha256_of
from worker.film import preprocess
from worker.findings.postprocess import PostprocessSettings


def check_settings(manifest: Manifest) -> None:
    """Refuse what a worker could not follow; BundleError names the member."""
    for member in manifest.members:
        try:
            preprocess.check(member.preprocess, member.channels, member.height, member.width)
        except BundleError as error:
            raise BundleError(f"Bundle {manifest.key}, member {member.name}: {error}") from None
    try:
        PostprocessSettings.from_manifest(manifest.postprocess)
    except ValueError as error:
        raise BundleError(f"Bundle {manifest.key}: {error}.") from None


def is_bundle(source: Path, sha256: str) -> bool:
    """Whether a folder holds the bundle whose manifest has this SHA-256; its other files are not looked at."""
    manifest = source / MANIFEST_NAME
    return manifest.is_file() and sha256_of(manifest) == sha256


def is_whole(directory: Path) -> bool:
    """Whether a folder holds a bundle, every file as its manifest says."""
    try:
        read_manifest(directory)
    except BundleError:
        return False
    return True


def store(source: Path, target: Path) -> None:
    """Copy a bundle's files and nothing beside them; it appears under its name whole or not at all."""
    if is_whole(target):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=".copy-"))
    copy = temporary / "bundle"
    try:
        for name in (MANIFEST_NAME, *read_manifest(source, verify_files=False).files):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, copy / name)
        read_manifest(copy)
        if target.exists():
            target.rename(temporary / "damaged")
        try:
            copy.rename(target)
        except OSError:
            # Another process was quicker.
            if not is_whole(target):
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
