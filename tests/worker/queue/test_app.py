from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from ledger_rows import settings_for

from worker.errors import CarinaError
from worker.queue.app import KEY_PREFIX, QUEUE, make_app

ROOT = Path(__file__).resolve().parents[3]
URL = "redis://:secret@broker.example:6379/0"

WITHOUT_CELERY = """
import importlib.abc, sys

class NoCelery(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"celery", "kombu", "redis"}:
            raise ModuleNotFoundError(f"{name} is absent", name=name)

sys.meta_path.insert(0, NoCelery())
from worker.cli import main
main(sys.argv[1:])
"""


def without_celery(home: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_CELERY, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "CARINA_HOME": str(home), **environment},
    )


def test_a_lost_ticket_is_not_worth_a_wait(tmp_path: Path) -> None:
    pytest.importorskip("celery")
    conf = make_app(settings_for(tmp_path, broker_url=URL)).conf
    assert (conf.task_acks_late, conf.task_publish_retry, conf.task_ignore_result) == (False, False, True)
    assert conf.broker_connection_max_retries is None and conf.broker_connection_retry_on_startup is True
    options = conf.broker_transport_options
    assert {options[name] > 0 for name in ("socket_timeout", "socket_connect_timeout", "health_check_interval")} == {
        True
    }
    assert options["global_keyprefix"] == KEY_PREFIX == "carina:"


def test_one_process_with_threads_takes_one_ticket_each(tmp_path: Path) -> None:
    pytest.importorskip("celery")
    conf = make_app(settings_for(tmp_path, broker_url=URL)).conf
    assert (conf.worker_pool, conf.worker_prefetch_multiplier, conf.task_default_queue) == ("threads", 1, QUEUE)
    assert conf.worker_soft_shutdown_timeout == 30.0
    assert (conf.accept_content, conf.task_serializer, conf.event_serializer) == (["json"], "json", "json")


def test_the_process_keeps_its_own_logging(tmp_path: Path) -> None:
    pytest.importorskip("celery")
    conf = make_app(settings_for(tmp_path, broker_url=URL)).conf
    assert (conf.worker_hijack_root_logger, conf.worker_redirect_stdouts) == (False, False)


@pytest.mark.parametrize("url", ["", "amqp://guest@host", "filesystem://", "memory://", "broker.example:6379"])
def test_only_redis_is_a_broker(tmp_path: Path, url: str) -> None:
    with pytest.raises(CarinaError, match="CARINA_BROKER_URL must be the URL of a Redis or Valkey server") as caught:
        make_app(settings_for(tmp_path, broker_url=url))
    assert not url or url not in str(caught.value)


@pytest.mark.parametrize("url", [URL, "rediss://h/0", "redis+socket:///run/broker.sock", "sentinel://h:26379"])
def test_every_way_to_redis_is_taken(tmp_path: Path, url: str) -> None:
    pytest.importorskip("celery")
    assert make_app(settings_for(tmp_path, broker_url=url)).conf.broker_url == url


def test_celerys_own_command_line_finds_the_app(tmp_path: Path) -> None:
    pytest.importorskip("celery")
    done = subprocess.run(
        [sys.executable, "-m", "celery", "-A", "worker.queue.app", "report"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "CARINA_BROKER_URL": URL, "CARINA_HOME": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    assert "task_default_queue: 'tickets'" in done.stdout and "secret" not in done.stdout


def test_without_celery_a_worker_runs_as_long_as_there_is_no_broker(tmp_path: Path) -> None:
    done = without_celery(tmp_path, "status")
    assert done.returncode == 0, done.stderr
    done = without_celery(tmp_path, "worker", "--help")
    assert done.returncode == 0 and "--devices" in done.stdout


@pytest.mark.parametrize("command", [("worker", "--until-idle"), ("submit", str(ROOT / "docs")), ("retry", "--all")])
def test_without_celery_a_broker_is_refused_with_what_to_install(tmp_path: Path, command: tuple[str, ...]) -> None:
    done = without_celery(tmp_path, *command, CARINA_BROKER_URL=URL)
    assert done.returncode == 1
    assert "pip install 'carina-cxr[cluster]'" in " ".join(done.stderr.split())
    assert "secret" not in done.stderr and "Traceback" not in done.stderr
