"""``carina bundle``, and that the night reads with the bundle it was told to."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper
from phantom_bundle import PHANTOM_BUNDLE
from sqlalchemy import select
from tiny_bundle import SIZE, make_bundle

from schema import tables
from schema.bundle import read_manifest, sha256_of, write_manifest
from schema.database import Database
from schema.regions import Region
from worker.cli import COMMANDS, main
from worker.phantom import make_phantom, phantom_dataset
from worker.settings import load_settings

LUNGS = (Region.BACKGROUND, Region.LEFT_LUNG, Region.RIGHT_LUNG)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CARINA_HOME", str(tmp_path / "home"))
    monkeypatch.setitem(COMMANDS, "bundle", "worker.cli.bundle:bundle")
    return tmp_path / "home"


def carina(*arguments: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    bundle = make_bundle(tmp_path / "tiny")
    manifest = read_manifest(bundle)
    steps = ({"step": "min_max"}, {"step": "resize", "height": SIZE, "width": SIZE})
    members = tuple(replace(member, preprocess=steps) for member in manifest.members)
    write_manifest(bundle, replace(manifest, members=members))
    return bundle


def films(folder: Path, seeds: range) -> Path:
    folder.mkdir(exist_ok=True)
    for seed in seeds:
        phantom = make_phantom(seed, rows=300, columns=260, pneumonia=seed % 2 == 0, randomise=0.2)
        phantom_dataset(phantom).save_as(folder / f"{seed}.dcm")
    return folder


def table_of(folder: Path) -> list[dict[str, str]]:
    assert carina("export", "--format", "csv", "--out", folder)[0] == 0
    with (folder / "films.csv").open() as stream:
        return list(csv.DictReader(stream))


def test_from_add_to_rollback(tiny: Path) -> None:
    assert carina("bundle", "list") == (0, "No bundle is registered yet: the first start of a worker does it.\n")
    code, text = carina("bundle", "add", PHANTOM_BUNDLE, "--promote")
    assert (code, text) == (0, "phantom:2 is in service.\n")
    assert carina("bundle", "add", tiny) == (
        0,
        "tiny:1 is registered, not in service: carina bundle promote tiny:1\n",
    )
    assert json.loads(carina("bundle", "promote", "tiny:1", "--json")[1])["aliases"] == ["champion"]
    entries = json.loads(carina("bundle", "list", "--json")[1])
    assert [(entry["bundle"], entry["aliases"]) for entry in entries] == [
        ("phantom:2", ["previous"]),
        ("tiny:1", ["champion"]),
    ]
    assert all(entry["here"] for entry in entries)
    assert "phantom:2 is in service again" in carina("bundle", "rollback")[1]
    assert json.loads(carina("status", "--json")[1])


def test_list_and_show_tell_what_a_bundle_is(tiny: Path, home: Path) -> None:
    carina("bundle", "add", PHANTOM_BUNDLE)
    code, text = carina("bundle", "list")
    assert code == 0
    assert "candidate" in text
    code, text = carina("bundle", "show", "phantom:2")
    assert code == 0
    for words in ("not a medical device", "left_lung (exact)", "pneumonia from 0.319", "sees 1 x 256 x 256"):
        assert words in text
    assert (home / "bundles").is_dir()
    assert text.rstrip().endswith("model-card.md")
    shown = json.loads(carina("bundle", "show", "phantom:2", "--json")[1])
    assert shown["manifest"]["temperature"] == read_manifest(PHANTOM_BUNDLE).temperature
    shutil.rmtree(home / "bundles")
    code, text = carina("bundle", "promote", "phantom:2")
    assert (code, "this machine lacks its files" in text) == (1, True)
    assert "lacks its files" in carina("bundle", "promote", "phantom:2", "--force")[1]


def test_a_bundle_on_trial_from_shadow_jobs_to_promotion(tiny: Path, tmp_path: Path) -> None:
    newer = tmp_path / "newer"
    shutil.copytree(PHANTOM_BUNDLE, newer)
    manifest = read_manifest(newer)
    findings = tuple(replace(finding, threshold=1.0) for finding in manifest.findings)
    write_manifest(newer, replace(manifest, name="mine", version="7", findings=findings))
    assert carina("run", films(tmp_path / "night", range(4)))[0] == 0
    assert carina("bundle", "add", newer)[0] == 0
    before = table_of(tmp_path / "before")

    assert carina("bundle", "shadow", "mine:7") == (0, "Shadow jobs of mine:7: none.\n")
    assert carina("bundle", "shadow", "mine:7", "--all", "--last", "3")[0] == 2
    code, text = carina("bundle", "shadow", "mine:7", "--last", "3")
    assert (code, "3 films will be read by mine:7" in text, "3 ready" in text) == (0, True, True)
    assert carina("worker", "--until-idle")[0] == 0
    shown = json.loads(carina("bundle", "shadow", "mine:7", "--all", "--json")[1])
    assert shown == {"bundle": "mine:7", "opened": 1, "known": 3, "states": {"done": 3, "ready": 1}}
    assert carina("worker", "--until-idle")[0] == 0
    assert table_of(tmp_path / "after") == before

    champion = json.loads(carina("bundle", "list", "--json")[1])[0]["bundle"]
    code, text = carina("bundle", "diff", champion, "mine:7")
    assert (code, "pneumonia.threshold" in text) == (0, True)
    told = json.loads(carina("bundle", "diff", champion, "mine:7", "--json")[1])
    assert {each["section"] for each in told} == {"findings"}
    assert "the same about themselves" in carina("bundle", "diff", champion, champion)[1]
    code, text = carina("bundle", "compare", champion, "mine:7", "--out", tmp_path / "comparison")
    assert (code, "4 films read by both" in text, "left_lung" in text) == (0, True, True)
    found = json.loads(carina("bundle", "compare", champion, "mine:7", "--json")[1])
    assert found["regions"]["left_lung"]["worst"] == 1.0 and found["findings"]["pneumonia"]["gained"] == 0
    assert json.loads((tmp_path / "comparison" / "comparison.json").read_text()) == found

    assert carina("bundle", "promote", "mine:7")[0] == 0
    assert {row["bundle"] for row in table_of(tmp_path / "promoted")} == {"mine:7"}
    assert carina("bundle", "add", tiny)[0] == 0
    assert "0 films read by both" in carina("bundle", "compare", "mine:7", "tiny:1")[1]


def test_a_gate_refuses_with_a_sentence_and_force_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    newer = tmp_path / "newer"
    shutil.copytree(PHANTOM_BUNDLE, newer)
    write_manifest(newer, replace(read_manifest(newer), name="mine", version="7"))
    carina("bundle", "add", PHANTOM_BUNDLE, "--promote")
    monkeypatch.setenv("CARINA_SHADOW_AGREEMENT", "0.9")
    code, text = carina("bundle", "add", newer, "--promote")
    assert (code, "mine:7 is not put into service. It has read 0 of the films" in text) == (1, True)
    code, text = carina("bundle", "add", newer, "--promote", "--force")
    assert (code, "Overridden: It has read 0 of the films" in text, "mine:7 is in service." in text) == (0, True, True)


def test_what_cannot_be_added_is_one_sentence(tiny: Path, tmp_path: Path) -> None:
    code, text = carina("bundle", "add", tmp_path / "nowhere")
    assert (code, "is not a bundle" in text) == (1, True)
    code, text = carina("bundle", "promote", "tiny:1")
    assert (code, "There is no bundle 'tiny:1'" in text) == (1, True)
    assert carina("bundle", "rollback")[0] == 1
    carina("bundle", "add", tiny)
    write_manifest(tiny, replace(read_manifest(tiny), description="something else"))
    code, text = carina("bundle", "add", tiny, "--promote")
    assert (code, "Another bundle is registered as tiny:1" in text) == (1, True)
    assert "Traceback" not in text


def test_the_next_run_reads_with_the_promoted_bundle(tmp_path: Path) -> None:
    newer = tmp_path / "newer"
    shutil.copytree(PHANTOM_BUNDLE, newer)
    write_manifest(newer, replace(read_manifest(newer), name="mine", version="7"))
    assert carina("run", films(tmp_path / "first", range(2)))[0] == 0
    assert carina("bundle", "add", newer, "--promote")[0] == 0
    assert carina("run", films(tmp_path / "second", range(2, 4)))[0] == 0
    rows = {Path(row["source"]).parent.name: row for row in table_of(tmp_path / "table")}
    assert {name: (row["state"], row["bundle"]) for name, row in rows.items()} == {
        "first": ("done", "phantom:2"),
        "second": ("done", "mine:7"),
    }


def lungs_only(folder: Path) -> Path:
    """The packaged bundle with all but the lungs made background: a region set of three."""
    shutil.copytree(PHANTOM_BUNDLE, folder)
    manifest = read_manifest(folder)
    segmenter = manifest.members_of("segmentation")[0]
    names = [region.name for region in manifest.regions]
    merged = np.zeros((len(LUNGS), len(names)), np.float32)
    for source, name in enumerate(names):
        merged[LUNGS.index(Region(name)) if name in LUNGS else 0, source] = 1.0
    model = onnx.load(folder / segmenter.onnx)
    model.graph.node[-1].output[0] = "eight"
    model.graph.initializer.append(numpy_helper.from_array(merged[:, :, None, None], "merged"))
    model.graph.node.append(helper.make_node("Conv", ["eight", "merged"], ["probabilities"]))
    del model.graph.output[:]
    shape = ["batch", len(LUNGS), segmenter.height, segmenter.width]
    model.graph.output.append(helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, shape))
    onnx.checker.check_model(model)
    onnx.save(model, folder / segmenter.onnx)
    for name in manifest.parity_films:
        with np.load(folder / name) as arrays:
            film = dict(arrays)
        eight = film[f"{segmenter.name}.probabilities"].astype(np.float32)
        film[f"{segmenter.name}.probabilities"] = np.einsum("rs,shw->rhw", merged, eight).astype(np.float16)
        np.savez_compressed(folder / name, **film)
    regions = tuple(
        replace(manifest.regions[names.index(name)], value=value, origin="annotated")
        for value, name in enumerate(LUNGS)
    )
    files = {name: sha256_of(folder / name) for name in manifest.files}
    write_manifest(folder, replace(manifest, name="lungs", version="1", regions=regions, files=files))
    return folder


def test_a_night_with_a_bundle_that_knows_only_the_lungs(tmp_path: Path) -> None:
    assert carina("bundle", "add", lungs_only(tmp_path / "lungs"), "--promote")[0] == 0
    night = films(tmp_path / "night", range(4))
    leg = make_phantom(5, negative=True, kind="limb", randomise=0.2)
    phantom_dataset(leg, body_part="LEG").save_as(night / "leg.dcm")
    code, text = carina("run", night, "--report", tmp_path / "report", "--json")
    assert code == 0, text
    rows = {Path(row["source"]).stem: row for row in table_of(tmp_path / "table")}
    assert {name: (row["state"], row["code"]) for name, row in rows.items()} == {
        **{str(seed): ("done", "") for seed in range(4)},
        "leg": ("ineligible", "NOT_A_CHEST"),
    }
    assert {row["bundle"] for row in rows.values()} == {"lungs:1"}
    database = Database(load_settings().url)
    with database.read() as connection:
        measured = set(connection.scalars(select(tables.region_measurement.c.region)))
        flagged = {row.region for row in connection.execute(select(tables.failure_flag.c.region))}
    database.close()
    assert measured == set(LUNGS)
    assert flagged <= {None, *LUNGS}
    assert list((tmp_path / "report").glob("*.html"))
    assert carina("export", "--format", "png", "--out", tmp_path / "masks")[0] == 0
    assert len(list((tmp_path / "masks").glob("*.png"))) == 4
