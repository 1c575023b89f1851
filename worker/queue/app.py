"""How does Carina use Celery?

One queue of empty tickets, one task, no results. A ticket says "claim one batch and process
it"; the films are in the ledger. So a ticket may be lost or doubled, and nothing here is
set up to prevent that: acknowledging early, a short visibility timeout and no retries keep
the broker from ever holding work back.

Celery's own tools find the app as ``celery -A worker.queue.app``, with ``CARINA_BROKER_URL``
set as for a worker: ``inspect active``, ``status``, ``events``, and Flower.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from worker.errors import CarinaError
from worker.queue.loop import IN_FLIGHT
from worker.settings import Settings, load_settings

if TYPE_CHECKING:
    from celery import Celery

#: The one queue; Redis knows it with the prefix, as ``carina:tickets``.
QUEUE = "tickets"
KEY_PREFIX = "carina:"

#: What a broker may be: Redis or Valkey, plain, with TLS, by socket, or behind Sentinel.
SCHEMES = ("redis", "rediss", "redis+socket", "sentinel")

#: How long Celery waits for running batches before it gives up on a quick shutdown.
SOFT_SHUTDOWN_SECONDS = 30.0

#: Every wait for the broker ends: a connection that is half open must not hold anything up.
TRANSPORT_OPTIONS: dict[str, Any] = {
    "visibility_timeout": 60,
    "socket_timeout": 10,
    "socket_connect_timeout": 3,
    "socket_keepalive": True,
    "health_check_interval": 10,
    "global_keyprefix": KEY_PREFIX,
}

CONFIGURATION: dict[str, Any] = {
    # A process per device with threads: CUDA, psycopg and OpenVINO do not survive a fork.
    "worker_pool": "threads",
    "worker_concurrency": IN_FLIGHT,
    "worker_prefetch_multiplier": 1,
    "worker_soft_shutdown_timeout": SOFT_SHUTDOWN_SECONDS,
    "worker_cancel_long_running_tasks_on_connection_loss": False,
    "worker_hijack_root_logger": False,
    "worker_redirect_stdouts": False,
    "worker_send_task_events": True,
    "task_send_sent_event": True,
    "task_default_queue": QUEUE,
    "task_acks_late": False,
    "task_ignore_result": True,
    "task_publish_retry": False,
    "task_serializer": "json",
    "accept_content": ["json"],
    "result_accept_content": ["json"],
    "event_serializer": "json",
    "broker_connection_retry_on_startup": True,
    "broker_connection_max_retries": None,
    "broker_connection_timeout": 3,
    "broker_transport_options": TRANSPORT_OPTIONS,
}


def make_app(settings: Settings) -> Celery:
    """The Celery application of these settings; nothing is connected yet.

    Raises
    ------
    CarinaError
        Celery is not installed, there is no broker, or it is none of :data:`SCHEMES`.
    """
    scheme = settings.broker_url.partition("://")[0]
    if scheme not in SCHEMES:
        raise CarinaError(
            "CARINA_BROKER_URL must be the URL of a Redis or Valkey server, such as "
            f"redis://:PASSWORD@HOST:6379/0 (or {', '.join(SCHEMES[1:])}). Without a broker leave it empty."
        )
    try:
        import redis  # noqa: F401
        from celery import Celery
    except ModuleNotFoundError as error:
        raise CarinaError(
            f"CARINA_BROKER_URL is set, but {error.name} is not installed. Run: pip install 'carina-cxr[cluster]', "
            "or leave CARINA_BROKER_URL empty: workers then find their films by looking into the database."
        ) from None
    app = Celery("carina", broker=settings.broker_url, set_as_current=False)
    app.conf.update(CONFIGURATION)
    return app


def __getattr__(name: str) -> Any:
    """``app`` for Celery's command line, made from the environment when it is asked for."""
    if name == "app":
        from worker.queue.tasks import register

        application = make_app(load_settings())
        register(application)
        return application
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
