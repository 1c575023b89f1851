from __future__ import annotations

import json
import re
import shlex
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from click.testing import CliRunner
from labelled_films import NIGHT, LabelledFilms
from sqlalchemy import select, update
from sqlalchemy import text as sql
from stored_films import Films, fresh_database, result

from schema import tables
from schema.database import Database
from schema.keys import uid_key
from worker.cli import main
from worker.monitor import auc
from worker.settings import load_settings, site_key

ROWS = "sop_instance_uid,pneumonia,no_finding\n1.1,1,0\n1.2,0,1\n"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder with two films, 1.1 and 1.2."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("CARINA_HOME", str(folder))
    monkeypatch.chdir(tmp_path)
    key = site_key(load_settings())
    with fresh_database("sqlite", folder) as database:
        films = Films(database)
        for uid in ("1.1", "1.2"):
            films.instance(uid, key=uid_key(key, uid), film_rows=30, film_columns=20)
    (tmp_path / "labels.csv").write_text(ROWS)
    return folder


def carina(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, words)
    return result.exit_code, result.output


def bring(*words: str) -> tuple[int, str]:
    return carina("labels", "import", "labels.csv", "--reader", "reader-1", "--source", "consecutive", *words)


def test_import_show_and_count(home: Path) -> None:
    assert bring("--dry-run") == (0, "2 rows, 4 labels of known films: 4 new, would be recorded.\n")
    assert bring() == (0, "2 rows, 4 labels of known films: 4 new, recorded.\n")
    assert bring() == (0, "2 rows, 4 labels of known films: 0 new, recorded.\n")
    code, text = carina("labels", "show", "1.1", "--json")
    assert code == 0 and [(row["finding"], row["value"]) for row in json.loads(text)] == [
        ("pneumonia", "present"), ("no_finding", "absent"),
    ]  # fmt: skip
    code, text = carina("labels", "count")
    assert code == 0 and "2 labelled films, 0 of them with a result" in text and "pneumonia" in text
    code, text = carina("labels", "count", "--json", "--readers", "any")
    assert json.loads(text)["findings"][1] == {
        "finding": "pneumonia", "present": 1, "absent": 1, "uncertain": 0, "counting": 2,
    }  # fmt: skip
    code, text = carina("labels", "show", "7.7")
    assert code == 1 and "No film of this SOP Instance UID or instance key is known here" in text and "7.7" not in text


def test_exit_codes_and_what_is_said_of_wrong_lines(home: Path) -> None:
    file = home.parent / "labels.csv"
    file.write_text(ROWS + "1.9,1,0\n")
    code, text = bring()
    assert code == 3 and "1 films are not known here: lines 4" in text and "1.9" not in text
    file.write_text(ROWS + "1.1,maybe,0\n")
    code, text = bring()
    assert code == 1 and "line 4: pneumonia is neither 1, 0, -1 nor empty" in text and "Nothing was recorded" in text
    assert bring("--skip-bad")[0] == 3
    code, text = bring("--json")
    assert code == 1 and json.loads(text)["problems"][0]["line"] == 4
    assert bring("--marks", "labels.csv")[0] == 2
    code, text = carina("labels", "import", "labels.csv")
    assert code == 1 and "give --reader" in text


def test_masks(home: Path) -> None:
    folder = home.parent / "corrected"
    folder.mkdir()
    cv2.imwrite(str(folder / "1.1.png"), np.ones((30, 20), np.uint8))
    words = ("labels", "masks", str(folder), "--reader", "reader-1", "--source", "random")
    assert carina(*words) == (0, "1 pictures: 1 new, recorded.\n")
    cv2.imwrite(str(folder / "1.2.png"), np.ones((30, 21), np.uint8))
    code, text = carina(*words)
    assert code == 1 and "picture 2: it has 30 x 21 pixels" in text
    assert json.loads(carina(*words, "--skip-bad", "--json")[1])["written"] is True


class TestAuc:
    @pytest.fixture
    def site(self, home: Path) -> Any:
        database = Database(load_settings().url)
        with database.read() as connection:
            bundle = connection.scalar(select(tables.bundle.c.id))
        films = Films.__new__(Films)
        films.database, films.bundle, films.count = database, bundle, 0
        yield LabelledFilms(films)
        database.close()

    def test_nothing_tracked(self, home: Path) -> None:
        code, text = carina("auc")
        assert code == 0 and "Nothing is tracked yet" in text

    def test_update_and_show(self, site: LabelledFilms, monkeypatch: pytest.MonkeyPatch) -> None:
        # What it does is tested with as many replicates as there are; here they are only in the way.
        monkeypatch.setitem(auc.track.__kwdefaults__, "replicates", 50)
        now = datetime.now(UTC)
        ids, truth = site.night(now - 2 * NIGHT, 90, np.random.default_rng(1))
        site.label(ids, truth, at=now)
        code, text = carina("auc", "--update")
        assert code == 0 and "windows computed." in text and "pneumonia" in text and "too few" in text
        code, text = carina("auc", "--finding", "pneumonia", "--cohort", "age", "--period", "7d")
        assert code == 0 and "0-4" in text and "5+" in text
        code, text = carina("auc", "--json", "--finding", "pneumonia", "--period", "7d", "--cohort", "sex")
        rows = json.loads(text)["auc"]
        assert code == 0 and [row["cohort_value"] for row in rows] == ["F", "M"]
        code, text = carina("auc", "--finding", "pneumonia", "--floor", "0.99")
        assert code == 1 and "The whole interval lies under 0.99: pneumonia (phantom:1, 90d)." in text
        assert carina("auc", "--finding", "pneumonia", "--floor", "0.1")[0] == 0

    def test_a_wrong_policy_is_told(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CARINA_READERS", "loudest")
        code, text = carina("auc", "--update")
        assert code == 1 and "CARINA_READERS is 'loudest'; set one of majority, any, latest." in text


DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "monitoring.md"
TABLES = {
    "labels.csv": ROWS,
    "observations.csv": "sop_instance_uid,Pneumonia,Edema\n1.1,1.0,\n",
    "image_labels_test.csv": "image_id,rad_ID,No finding,Brocho-pneumonia\n1,R1,0,1\n",
    "annotations_test.csv": "image_id,rad_ID,class_name,x_min\n1,R1,Other opacity,5\n",
}


def test_everything_in_the_document_runs_as_printed(home: Path) -> None:
    with fresh_database("sqlite", home) as database:
        films = Films(database)
        for uid in ("1.1", "1.2"):
            films.film("done", uid=uid, stored=result(film=(60, 40)))
        key = site_key(load_settings())
        for number in (1, 2):
            values = {"key": uid_key(key, f"1.{number}"), "film_rows": 60, "film_columns": 40}
            with database.write() as connection:
                connection.execute(update(tables.instance).where(tables.instance.c.id == number).values(**values))
        for name, content in TABLES.items():
            (home.parent / name).write_text(content)
        text_of = DOCUMENT.read_text("utf-8")
        blocks = re.findall(r"^```(\w*)\n(.*?)^```", text_of, re.S | re.M)
        # One runs until it is stopped, one is about an alert that is not there.
        left_out = ("carina serve", "carina alerts acknowledge")
        lines = [line for kind, block in blocks if not kind for line in block.splitlines()]
        lines = [line for line in lines if line.startswith("carina ") and not line.startswith(left_out)]
        assert len(lines) >= 15
        for line in lines:
            code, text = carina(*shlex.split(line)[1:])
            # 3 says that something has moved or an alert is open.
            assert code in ((0, 3) if "alerts" in line or "drift" in line else (0,)), f"{line}: {text}"
        statements = [block for kind, block in blocks if kind == "sql"]
        assert len(statements) == 3
        with database.read() as connection:
            for statement in statements:
                # These films have no grey values.
                assert connection.execute(sql(statement)).all() or "input_drift" in statement, statement
