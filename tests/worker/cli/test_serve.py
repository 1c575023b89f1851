from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

from page_server import Browser


def environment(folder: Path, **settings: str) -> dict[str, str]:
    return {**os.environ, "CARINA_HOME": str(folder / "home"), "CARINA_SERVE_PORT": "0", **settings}


def test_serves_until_it_is_told_to_stop(tmp_path: Path) -> None:
    program = subprocess.Popen(
        [sys.executable, "-m", "worker.cli", "serve"], env=environment(tmp_path), stdout=subprocess.PIPE, text=True
    )
    assert program.stdout is not None
    try:
        address = urlsplit(program.stdout.readline().removeprefix("Open ").strip())
        assert address.hostname == "127.0.0.1" and address.port and address.query.startswith("token=")
        browser = Browser(address.port)
        assert browser.get("/").status == 401
        assert browser.get(f"/?{address.query}").status == 303
        assert "Worklist" in browser.page("/").words
    finally:
        program.send_signal(signal.SIGTERM)
        rest = program.stdout.read()
        program.stdout.close()
    assert program.wait(60) == 0 and "Research use, not a medical device" in rest


def test_an_address_that_is_taken_is_said(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            [sys.executable, "-m", "worker.cli", "serve"],
            env=environment(tmp_path, CARINA_SERVE_PORT=port),
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert done.returncode == 1 and f"port {port}" in done.stderr and "CARINA_SERVE_PORT" in done.stderr


def test_what_is_lacking_is_said(tmp_path: Path) -> None:
    without = "import sys; sys.modules['starlette'] = None; from worker.cli import main; main(['serve'])"
    done = subprocess.run(
        [sys.executable, "-c", without], env=environment(tmp_path), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1 and "pip install 'carina-cxr[serve]'" in done.stderr


def test_settings_without_meaning_are_refused(tmp_path: Path) -> None:
    for settings, words in (
        ({"CARINA_SERVE_IDENTIFIERS": "patient_id"}, "accession_number"),
        ({"CARINA_SERVE_PICTURES": "some"}, "yes or no"),
        ({"CARINA_SERVE_TOKEN": "short"}, "at least 16"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "worker.cli", "serve"],
            env=environment(tmp_path, **settings),
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 1 and words in done.stderr, settings
