"""The bundle manifest: what a trained set of networks says about itself.

A bundle is a directory: ``bundle.json`` (this manifest), ``*.onnx``, parity films with
reference outputs and ``model-card.md``. It is portable and the source of truth; engines
are compiled from it per device.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from schema.regions import RegionDefinition

MANIFEST_NAME = "bundle.json"
FORMAT = 1
_SLUG = re.compile(r"^[a-z0-9][a-z0-9._-]{0,62}$")
_FIELD_SLUG = re.compile(r"^[a-z][a-z0-9_]{0,62}$")

Task = Literal["segmentation", "classification"]
RegionOrigin = Literal["annotated", "derived", "exact"]


class BundleError(Exception):
    """A bundle is unusable; the message names the bundle, what is wrong and what to do."""


@dataclass(frozen=True)
class BundleRegion:
    """A region of this bundle: label value, name and how its training truth was made.

    ``origin`` is ``annotated`` (drawn by people), ``derived`` (by rule: never scored as
    accuracy) or ``exact`` (phantoms). ``note`` says in words what the region means here, where that
    is not what its name says everywhere.
    """

    value: int
    name: str
    title: str
    colour: tuple[int, int, int]
    origin: RegionOrigin
    note: str = ""

    def definition(self) -> RegionDefinition:
        """The region without its origin."""
        return RegionDefinition(self.value, self.name, self.title, self.colour)


@dataclass(frozen=True)
class Member:
    """One network.

    ``preprocess`` is the ordered list run by ``worker.film.preprocess``; its last shape is
    (``channels``, ``height``, ``width``). A segmentation member has the output
    ``probabilities`` of shape (batch, regions, height, width), of which the highest names a
    pixel's region; several are averaged pixel by pixel, so they share height and width. A classification member has
    ``probabilities`` (batch, findings) and ``cam`` (batch, findings, h, w), raw and unscaled.
    ``variants`` names files of the same network, same inputs and outputs, written for a precision
    (``"int8"``: an 8-bit graph; ``"fp16"``, ``"bf16"``: strongly typed graphs) or for ``"torch"``.
    """

    name: str
    task: Task
    onnx: str
    channels: int
    height: int
    width: int
    preprocess: tuple[dict[str, Any], ...]
    network: str = ""
    parameters: int = 0
    variants: Mapping[str, str] = field(default_factory=dict)

    @property
    def networks(self) -> tuple[str, ...]:
        """The names of the files that hold the network."""
        return (self.onnx, *self.variants.values())


@dataclass(frozen=True)
class FindingThreshold:
    """A finding of this bundle and the probability (0-1) from which it counts as positive."""

    finding: str
    threshold: float


@dataclass(frozen=True)
class Manifest:
    """A parsed and checked ``bundle.json``."""

    name: str
    version: str
    created: str
    description: str
    regions: tuple[BundleRegion, ...]
    findings: tuple[FindingThreshold, ...]
    members: tuple[Member, ...]
    temperature: float
    parity_films: tuple[str, ...]
    metrics: dict[str, Any]
    recipe: dict[str, Any]
    data_digest: str
    files: dict[str, str]
    postprocess: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """``name:version``, how people and the database call it."""
        return f"{self.name}:{self.version}"

    @property
    def region_definitions(self) -> tuple[RegionDefinition, ...]:
        """The regions in the order of the probabilities' channel axis."""
        return tuple(region.definition() for region in self.regions)

    def members_of(self, task: Task) -> tuple[Member, ...]:
        """The members of one task, in ensemble order."""
        return tuple(member for member in self.members if member.task == task)

    def to_json(self) -> dict[str, Any]:
        """The manifest as written to ``bundle.json``."""
        return {
            "format": FORMAT,
            "name": self.name,
            "version": self.version,
            "created": self.created,
            "description": self.description,
            "intended_use": "Research use, not a medical device.",
            "regions": [
                {
                    "value": r.value,
                    "name": r.name,
                    "title": r.title,
                    "colour": list(r.colour),
                    "origin": r.origin,
                    **({"note": r.note} if r.note else {}),
                }
                for r in self.regions
            ],
            "findings": [{"finding": f.finding, "threshold": f.threshold} for f in self.findings],
            "members": [
                {
                    "name": m.name,
                    "task": m.task,
                    "onnx": m.onnx,
                    "channels": m.channels,
                    "height": m.height,
                    "width": m.width,
                    "preprocess": list(m.preprocess),
                    "network": m.network,
                    "parameters": m.parameters,
                    **({"variants": dict(m.variants)} if m.variants else {}),
                }
                for m in self.members
            ],
            "temperature": self.temperature,
            "postprocess": self.postprocess,
            "parity_films": list(self.parity_films),
            "metrics": self.metrics,
            "recipe": self.recipe,
            "data_digest": self.data_digest,
            "files": self.files,
        }


def is_name(text: str) -> bool:
    """Whether ``text`` may be a bundle's name or version: lower-case letters, digits, ``.``, ``_``, ``-``."""
    return _SLUG.match(text) is not None


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, hex."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def write_manifest(directory: Path, manifest: Manifest) -> str:
    """Write ``bundle.json`` and return its SHA-256, the bundle's identity."""
    path = directory / MANIFEST_NAME
    path.write_text(json.dumps(manifest.to_json(), indent=2, ensure_ascii=False) + "\n", "utf-8")
    return sha256_of(path)


def read_manifest(directory: Path, *, verify_files: bool = True) -> Manifest:
    """Read and check a bundle directory.

    Raises
    ------
    BundleError
        The manifest is absent, is not valid, or a file's SHA-256 differs.
    """
    path = directory / MANIFEST_NAME
    try:
        raw = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise BundleError(f"{directory} is not a bundle: it has no {MANIFEST_NAME}.") from None
    except (OSError, ValueError) as error:
        raise BundleError(f"{path} cannot be read: {error}.") from None
    try:
        manifest = _parse(raw)
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(f"{path} is not a valid manifest: {error!s}.") from None
    _check(path, manifest)
    if verify_files:
        verify(directory, manifest)
    return manifest


def verify(directory: Path, manifest: Manifest) -> None:
    """Compare every file with the manifest's SHA-256; raises BundleError at the first difference."""
    for name, expected in manifest.files.items():
        file = directory / name
        if not file.is_file():
            raise BundleError(f"Bundle {manifest.key} lacks the file {name}: copy the bundle again.")
        if sha256_of(file) != expected:
            raise BundleError(
                f"Bundle {manifest.key}: {name} is not the file its manifest names (SHA-256 differs): "
                "copy the bundle again."
            )


def _parse(raw: dict[str, Any]) -> Manifest:
    if raw["format"] != FORMAT:
        raise ValueError(f"format {raw['format']!r} is not supported, this version reads {FORMAT}")
    return Manifest(
        name=raw["name"],
        version=str(raw["version"]),
        created=raw["created"],
        description=raw["description"],
        regions=tuple(
            BundleRegion(
                int(r["value"]),
                r["name"],
                r["title"],
                (int(r["colour"][0]), int(r["colour"][1]), int(r["colour"][2])),
                r["origin"],
                str(r.get("note", "")),
            )
            for r in raw["regions"]
        ),
        findings=tuple(FindingThreshold(f["finding"], float(f["threshold"])) for f in raw["findings"]),
        members=tuple(
            Member(
                m["name"],
                m["task"],
                m["onnx"],
                int(m["channels"]),
                int(m["height"]),
                int(m["width"]),
                tuple(m["preprocess"]),
                m.get("network", ""),
                int(m.get("parameters", 0)),
                dict(m.get("variants", {})),
            )
            for m in raw["members"]
        ),
        temperature=float(raw["temperature"]),
        parity_films=tuple(raw["parity_films"]),
        metrics=dict(raw["metrics"]),
        recipe=dict(raw["recipe"]),
        data_digest=raw["data_digest"],
        files=dict(raw["files"]),
        postprocess=dict(raw.get("postprocess", {})),
    )


def _check(path: Path, manifest: Manifest) -> None:
    def refuse(what: str) -> BundleError:
        return BundleError(f"{path}: {what}.")

    if not is_name(manifest.name) or not is_name(manifest.version):
        raise refuse("name and version must be lower-case letters, digits, '.', '_' or '-'")
    values = [region.value for region in manifest.regions]
    if values != list(range(len(values))):
        raise refuse("regions must have the values 0, 1, 2, ... in order")
    slugs = [region.name for region in manifest.regions] + [f.finding for f in manifest.findings]
    bad = [slug for slug in slugs if not _FIELD_SLUG.match(slug)]
    if bad or len(set(slugs)) != len(slugs):
        raise refuse("regions and findings need distinct lower-case names")
    grids = {f"{member.height} x {member.width}" for member in manifest.members_of("segmentation")}
    if not grids:
        raise refuse("there is no segmentation member")
    if len(grids) > 1:
        raise refuse(
            f"the segmentation members answer on grids of {' and '.join(sorted(grids))}, but masks are averaged pixel "
            "by pixel: package networks of one size"
        )
    if manifest.findings and not manifest.members_of("classification"):
        raise refuse("findings are named but there is no classification member")
    if manifest.temperature <= 0:
        raise refuse("temperature must be positive")
    if any(not 0.0 <= f.threshold <= 1.0 for f in manifest.findings):
        raise refuse("thresholds must lie between 0 and 1")
    networks = [name for member in manifest.members for name in member.networks]
    for name in [*manifest.files, *networks, *manifest.parity_films]:
        if name.startswith("/") or ".." in Path(name).parts:
            raise refuse(f"file name {name!r} leaves the bundle")
    unlisted = {*networks, *manifest.parity_films}
    if missing := unlisted - set(manifest.files):
        raise refuse(f"no SHA-256 is given for {', '.join(sorted(missing))}")
