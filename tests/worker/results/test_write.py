from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError
from stored_films import Films, labels, result

from schema import tables
from schema.database import Database
from worker.results.masks import MASK_ENCODING, decode_array, decode_mask
from worker.results.write import write_results

RESULT_TABLES = (
    tables.segmentation,
    tables.region_measurement,
    tables.failure_flag,
    tables.finding_score,
    tables.heatmap,
)


def counts(database: Database) -> dict[str, int]:
    with database.read() as connection:
        return {table.name: connection.scalar(select(func.count()).select_from(table)) for table in RESULT_TABLES}


def test_everything_of_a_result_is_stored_and_comes_back(database: Database, films: Films) -> None:
    job = films.film("done", stored=result(flags=("missing_region",), flip_columns=True))
    with database.read() as connection:
        stored = connection.execute(select(tables.segmentation)).one()
        carina = connection.execute(
            select(tables.region_measurement).where(tables.region_measurement.c.region == "carina")
        ).one()
        flag = connection.execute(select(tables.failure_flag)).one()
        score = connection.execute(
            select(tables.finding_score).where(tables.finding_score.c.finding == "pneumonia")
        ).one()
        heat = connection.execute(select(tables.heatmap)).one()
    raw = labels()
    raw[0, 0] = 7
    assert stored.job_id == job
    assert stored.encoding == MASK_ENCODING
    np.testing.assert_array_equal(decode_mask(stored.mask, (stored.height, stored.width)), labels())
    np.testing.assert_array_equal(decode_mask(stored.raw_mask, (stored.height, stored.width)), raw)
    assert (stored.film_rows, stored.film_columns) == (300, 200)
    assert (stored.flip_columns, stored.flip_rows) == (True, False)
    assert stored.engine["precision"] == "fp32"
    assert (carina.box_top, carina.box_left, carina.box_bottom, carina.box_right) == (0, 1, 2, 3)
    assert carina.mean_probability == pytest.approx(0.9)
    assert carina.area_pixels == np.count_nonzero(labels() == 7)
    assert (flag.rule, flag.source, flag.region, flag.value, flag.threshold) == (
        "missing_region", "cleaned", "carina", 3.0, 5.0,
    )  # fmt: skip
    assert score.probability == pytest.approx(0.25)
    assert score.positive is False
    assert score.members == {"a": 0.2, "b": 0.3}
    np.testing.assert_array_equal(
        decode_array(heat.maps, (len(heat.findings), heat.height, heat.width)),
        np.arange(512, dtype=np.uint8).reshape(2, 16, 16),
    )


def test_the_raw_map_is_kept_only_where_it_differs(database: Database, films: Films) -> None:
    full = result()
    untouched = replace(full.segmentation, raw=full.segmentation.cleaned, repaired_pixels=0)
    job = films.film("done", stored=replace(full, segmentation=untouched))
    with database.read() as connection:
        raw = connection.scalar(select(tables.segmentation.c.raw_mask).where(tables.segmentation.c.job_id == job))
    assert raw is None


def test_ineligible_films_leave_no_result(database: Database, films: Films) -> None:
    films.film("ineligible", stored=result(ineligible="LATERAL", flags=("missing_region",)))
    assert set(counts(database).values()) == {0}


def test_a_batch_is_written_whole_or_not_at_all(database: Database, films: Films) -> None:
    first, second = films.film("done"), films.film("done")
    bad = result()
    bad.scores[0] = replace(bad.scores[0], probability=1.5)
    with pytest.raises(IntegrityError), database.write() as connection:
        write_results(connection, [(first, result()), (second, bad)])
    assert set(counts(database).values()) == {0}


def test_a_job_has_one_result(database: Database, films: Films) -> None:
    job = films.film("done", stored=result())
    with pytest.raises(IntegrityError), database.write() as connection:
        write_results(connection, [(job, result())])
    assert counts(database)["segmentation"] == 1


def test_a_number_that_is_none_is_stored_as_none(database: Database, films: Films) -> None:
    full = result(flags=("low_confidence",))
    full.flags[0] = replace(full.flags[0], value=float("nan"))
    films.film("done", stored=full)
    with database.read() as connection:
        assert connection.scalar(select(tables.failure_flag.c.value)) is None


def test_a_probability_that_is_none_is_refused(database: Database, films: Films) -> None:
    full = result()
    full.scores[0] = replace(full.scores[0], probability=float("nan"))
    job = films.film("done")
    with pytest.raises(IntegrityError), database.write() as connection:
        write_results(connection, [(job, full)])


def test_nothing_to_write_is_fine(database: Database) -> None:
    with database.write() as connection:
        write_results(connection, [])
    assert set(counts(database).values()) == {0}
