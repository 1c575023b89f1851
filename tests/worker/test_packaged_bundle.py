"""The bundle in the wheel: whole, small, right on phantoms and good on real films."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from schema.bundle import Manifest, read_manifest
from schema.findings import Finding
from schema.regions import HOLSTE_REGIONS, REGION_BY_NAME, Region
from worker.errors import FilmError
from worker.film.prepare import prepare
from worker.film.preprocess import apply, check
from worker.film.source import FilmSource
from worker.findings.eligibility import judge
from worker.findings.flag_rules import Rule
from worker.findings.flags import FlagContext, evaluate
from worker.findings.measurements import measure
from worker.findings.postprocess import PostprocessSettings, postprocess
from worker.inference.bundles import PACKAGED_BUNDLE
from worker.inference.engines.base import Engine, Precision
from worker.inference.engines.openvino import OpenVinoBackend
from worker.metrics import auroc, overlap, region_overlaps
from worker.phantom import dicom_bytes, make_phantom, phantom_dataset

ROOT = Path(__file__).resolve().parents[2]
DIRECTORY = PACKAGED_BUNDLE
SHARED = ROOT.parent / "shared" / "data"
LUNGS = [REGION_BY_NAME[region].value for region in (Region.LEFT_LUNG, Region.RIGHT_LUNG)]

#: The picture shows a chest, whatever its header says.
REAL_CHESTS = sorted((SHARED / "dicom" / "dev").glob("*.dcm"))
STRANGERS = [
    path for part in ("RG2_", "RG3_", "dx_image") for path in sorted((SHARED / "dicom" / "dev_ood").glob(f"*{part}*"))
]


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    return read_manifest(DIRECTORY)


@pytest.fixture(scope="module")
def networks(manifest: Manifest) -> dict[str, Engine]:
    backend = OpenVinoBackend()
    return {m.name: backend.compile(DIRECTORY / m.onnx, Precision.FP32) for m in manifest.members}


def segment(manifest: Manifest, networks: dict[str, Engine], tensor: np.ndarray) -> np.ndarray:
    (member,) = manifest.members_of("segmentation")
    return np.asarray(networks[member.name].run(tensor[None])["probabilities"][0])


def score(manifest: Manifest, networks: dict[str, Engine], film: np.ndarray, finding: str) -> float:
    """The ensemble's mean probability."""
    place = [each.finding for each in manifest.findings].index(Finding(finding))
    members = manifest.members_of("classification")
    outputs = [networks[m.name].run(apply(m.preprocess, film, None)[None])["probabilities"][0] for m in members]
    return float(np.mean([output[place] for output in outputs]))


def test_is_whole_and_small(manifest: Manifest) -> None:
    assert manifest.key == "carina:1"
    assert sum(path.stat().st_size for path in DIRECTORY.rglob("*") if path.is_file()) < 25_000_000
    assert len(manifest.parity_films) == 4
    for member in manifest.members:
        check(member.preprocess, member.channels, member.height, member.width)
    listed = {*manifest.files, "bundle.json"}
    assert {str(path.relative_to(DIRECTORY)) for path in DIRECTORY.rglob("*") if path.is_file()} == listed


def test_finds_the_regions_of_new_phantoms(manifest: Manifest, networks: dict[str, Engine]) -> None:
    steps = manifest.members_of("segmentation")[0].preprocess
    settings = PostprocessSettings.from_manifest(manifest.postprocess)
    scores = []
    for seed in range(8):
        phantom = make_phantom(10**6 + seed, rows=320, columns=280, randomise=0.4)
        probabilities = segment(manifest, networks, apply(steps, phantom.image, None))
        found = postprocess(probabilities, manifest.region_definitions, settings).cleaned
        truth = cv2.resize(phantom.labels, (256, 256), interpolation=cv2.INTER_NEAREST)
        scores.append({name: score.dice for name, score in region_overlaps(truth, found, HOLSTE_REGIONS).items()})
    mean = {name: np.nanmean([score[name] for score in scores]) for name in scores[0]}
    assert min(mean[Region.LEFT_LUNG], mean[Region.RIGHT_LUNG]) > 0.93
    assert min(mean[Region.SPINE], mean[Region.LEFT_SUBDIAPHRAGM], mean[Region.RIGHT_SUBDIAPHRAGM]) > 0.8
    assert mean[Region.CARINA] > 0.35


def test_tells_ill_phantoms_from_well_ones(manifest: Manifest, networks: dict[str, Engine]) -> None:
    scores, truth = [], []
    for seed in range(30):
        phantom = make_phantom(2 * 10**6 + seed, rows=320, columns=280, pneumonia=seed % 2 == 0, randomise=0.4)
        scores.append(score(manifest, networks, phantom.image, "pneumonia"))
        truth.append(seed % 2 == 0)
    assert auroc(np.asarray(truth), np.asarray(scores)) > 0.8


def picture_verdict(manifest: Manifest, networks: dict[str, Engine], path: Path) -> str:
    """``refused``, ``failure`` (done, its masks called unsound) or ``chest``."""
    member = manifest.members_of("segmentation")[0]
    film = prepare(FilmSource(path), {member.name: member.preprocess})
    probabilities = segment(manifest, networks, film.tensors[member.name])
    regions = manifest.region_definitions
    settings = PostprocessSettings.from_manifest(manifest.postprocess)
    segmentation = postprocess(probabilities, regions, settings)
    measurements = measure(segmentation, probabilities, regions, film.geometry)
    centre = {m.region: m.centroid_column for m in measurements}
    verdict = judge(segmentation, measurements, film.facts, regions)
    context = FlagContext(segmentation, measurements, probabilities, regions, film.facts, settings=settings)
    if not verdict.eligible:
        return "refused"
    if Rule.HOLSTE_FAILURE in {flag.rule for flag in evaluate(context)}:
        return "failure"
    assert centre[Region.RIGHT_LUNG] < centre[Region.LEFT_LUNG]
    return "chest"


@pytest.mark.parametrize(("kind", "chest"), [(None, True), ("limb", False), ("pelvis", False), ("lateral", False)])
def test_only_chests_are_eligible(
    manifest: Manifest,
    networks: dict[str, Engine],
    tmp_path: Path,
    kind: str | None,
    chest: bool,
) -> None:
    phantom = make_phantom(31, negative=kind is not None, kind=kind, randomise=0.3)
    path = tmp_path / "film.dcm"
    path.write_bytes(dicom_bytes(phantom_dataset(phantom)))
    assert picture_verdict(manifest, networks, path) == ("chest" if chest else "refused")


@pytest.mark.skipif(not REAL_CHESTS, reason="the shared real films are not here")
@pytest.mark.parametrize("path", REAL_CHESTS, ids=lambda path: path.stem[-24:])
def test_real_adult_chests_are_eligible(manifest: Manifest, networks: dict[str, Engine], path: Path) -> None:
    assert picture_verdict(manifest, networks, path) == "chest"


@pytest.mark.skipif(not STRANGERS, reason="the shared real films are not here")
@pytest.mark.parametrize("path", STRANGERS, ids=lambda path: path.stem[-24:])
def test_real_hip_leg_and_dog_are_not(manifest: Manifest, networks: dict[str, Engine], path: Path) -> None:
    try:
        found = picture_verdict(manifest, networks, path)
    except FilmError as error:
        pytest.fail(f"the film could not be read: {error.code}")
    # The dog has a thorax: its masks are called unsound, it is not refused.
    assert found == ("failure" if "dx_image" in path.name else "refused")


@pytest.mark.skipif(not (SHARED / "ped_cxr").is_dir(), reason="the shared real films are not here")
def test_lungs_of_real_children_agree_with_peoples_drawings(manifest: Manifest, networks: dict[str, Engine]) -> None:
    steps = manifest.members_of("segmentation")[0].preprocess
    scores = []
    for path in sorted((SHARED / "ped_cxr" / "img224").glob("*.jpeg"))[::180]:
        drawn = cv2.imread(str(SHARED / "ped_cxr" / "mask224" / f"{path.stem}.png"), cv2.IMREAD_GRAYSCALE)
        if drawn is None:
            continue
        film = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE).astype(np.float32) / 255
        found = np.isin(segment(manifest, networks, apply(steps, film, None)).argmax(axis=0), LUNGS)
        truth = cv2.resize(drawn, (256, 256), interpolation=cv2.INTER_NEAREST) > 0
        scores.append(overlap(truth, found).dice)
    assert len(scores) > 15
    assert np.median(scores) > 0.94
