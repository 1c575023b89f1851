from __future__ import annotations

import logging
import re
import socket
from collections import Counter
from datetime import UTC, datetime, timedelta
from http.client import HTTPConnection
from pathlib import Path

import pytest
from stored_films import Films

from schema import tables
from worker.monitor.prometheus import BUCKETS, CONTENT_TYPE, Metrics, serving_metrics
from worker.queue.batches import BatchReport
from worker.settings import Settings

ENGINE = {"bundle": "phantom:1", "backend": "openvino", "device": 'CPU "fast"\\1', "precision": "fp32"}
LINE = re.compile(r'^[a-z_]+(\{([a-z_]+="(\\.|[^"\\])*",?)+\})? \S+$')


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def metrics(films: Films, tmp_path: Path) -> Metrics:
    return Metrics(Settings(home=tmp_path), films.database, "host-1", lambda: dict(ENGINE))


def values(text: str) -> dict[str, float]:
    return {
        name: float(number)
        for name, _, number in (line.rpartition(" ") for line in text.splitlines() if line and line[0] != "#")
    }


def ask(port: int, path: str = "/metrics", method: str = "GET") -> tuple[int, str, str]:
    connection = HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request(method, path)
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    return answer.status, answer.headers.get("Content-Type", ""), body


def test_batches_are_counted_by_what_films_became_and_how_long_they_took(metrics: Metrics) -> None:
    metrics.observe(BatchReport(3, Counter(done=2, failed=1)), 0.2)
    metrics.observe(BatchReport(2, Counter(done=1, ineligible=1)), 0.5)
    metrics.observe(BatchReport(1, Counter(delayed=1)), 1e6)
    found = values(metrics.text())
    states = {state: found[f'carina_films_total{{state="{state}"}}'] for state in ("done", "failed", "ineligible")}
    assert states == {"done": 3, "failed": 1, "ineligible": 1}
    assert found['carina_batch_seconds_bucket{le="0.25"}'] == 1
    assert found['carina_batch_seconds_bucket{le="0.5"}'] == 2, "a bucket includes its upper end"
    assert found[f'carina_batch_seconds_bucket{{le="{BUCKETS[-1]}"}}'] == 2
    assert found['carina_batch_seconds_bucket{le="+Inf"}'] == found["carina_batch_seconds_count"] == 3
    assert found["carina_batch_seconds_sum"] == pytest.approx(1_000_000.7)


def test_the_queue_is_asked_by_lane_and_state(films: Films, metrics: Metrics) -> None:
    films.film("ready", created_at=datetime.now(UTC) - timedelta(seconds=500))
    films.film("ready", priority=10)
    films.film("delayed")
    films.film("done")
    films.insert(tables.alert, rule="disk", subject="host-1")
    found = values(metrics.text())
    assert found['carina_queue_films{lane="icu",state="ready"}'] == 1
    assert found['carina_queue_films{lane="archive",state="ready"}'] == 1
    assert found['carina_queue_films{lane="icu",state="delayed"}'] == 1
    assert found['carina_queue_films{lane="icu",state="leased"}'] == 0
    assert found['carina_oldest_ready_seconds{lane="icu"}'] == pytest.approx(500, abs=60)
    assert found["carina_database_up"] == 1 and found['carina_alerts_open{rule="disk"}'] == 1
    assert found["carina_home_free_bytes"] > 0


def test_every_line_can_be_read_and_no_label_names_a_film(films: Films, metrics: Metrics) -> None:
    films.film("ready")
    text = metrics.text()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert all(LINE.match(line) for line in lines), lines
    assert r'device="CPU \"fast\"\\1"' in text
    labels = set(re.findall(r'[{,]([a-z_]+)="', text))
    assert labels == {"state", "lane", "le", "bundle", "backend", "device", "precision", "worker", "version"}
    described = re.findall(r"^# TYPE (\S+) (counter|gauge|histogram)$", text, re.MULTILINE)
    names = {re.sub(r"_(bucket|sum|count)$", "", line.partition("{")[0].partition(" ")[0]) for line in lines}
    assert names <= {name for name, _ in described} and len(described) == len(set(described))


def test_without_a_database_the_worker_still_answers(films: Films, metrics: Metrics) -> None:
    with films.database.write() as connection:
        tables.alert.drop(connection)
    found = values(metrics.text())
    assert found["carina_database_up"] == 0 and 'carina_films_total{state="done"}' in found
    assert not any(name.startswith("carina_queue_films") for name in found)


def test_the_endpoint_answers_while_it_is_open(films: Films, tmp_path: Path) -> None:
    port = free_port()
    settings = Settings(home=tmp_path, metrics_port=port)
    with serving_metrics(settings, films.database, "host-1", lambda: dict(ENGINE)) as metrics:
        metrics.observe(BatchReport(1, Counter(done=1)), 0.1)
        status, kind, body = ask(port)
        assert (status, kind) == (200, CONTENT_TYPE)
        assert values(body)['carina_films_total{state="done"}'] == 1
        assert 'carina_worker_info{worker="host-1"' in body
        assert ask(port, "/")[0] == 404
        assert ask(port, "/metrics", "POST")[0] == 501
    with pytest.raises(ConnectionRefusedError):
        ask(port)


def test_a_port_that_is_taken_stops_no_work(films: Films, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        settings = Settings(home=tmp_path, metrics_port=other.getsockname()[1])
        with (
            caplog.at_level(logging.ERROR),
            serving_metrics(settings, films.database, "host-1", lambda: dict(ENGINE)) as metrics,
        ):
            metrics.observe(BatchReport(1), 0.1)
    assert "CARINA_METRICS_PORT of its own" in caplog.text


def test_none_is_opened_unless_asked_for(films: Films, tmp_path: Path) -> None:
    import threading

    with serving_metrics(Settings(home=tmp_path), films.database, "host-1", lambda: dict(ENGINE)):
        assert "metrics" not in {thread.name for thread in threading.enumerate()}
