"""What OpenVINO does to the process that uses it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[4]

#: Backends that come and go in the order that leaves a freed signal stack where each has its own core.
_SIGNALLED = """
import gc, os, signal
from worker.inference.engines.openvino import OpenVinoBackend

heard = []
signal.signal(signal.SIGUSR1, lambda *_: heard.append(True))
backends = [OpenVinoBackend() for _ in range(3)]
while backends:
    del backends[0]
    gc.collect()
os.kill(os.getpid(), signal.SIGUSR1)
print(heard)
"""


def test_a_signal_is_still_handled_after_backends_came_and_went() -> None:
    done = subprocess.run([sys.executable, "-c", _SIGNALLED], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, "[True]"), done.stderr
