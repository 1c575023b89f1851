from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from pathlib import Path

import psutil
import pytest
import servers

from worker.devices import Device, DeviceWorker, choose_devices, find_gpus, run_devices
from worker.errors import CarinaError

BOTH = ("openvino", "tensorrt")


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def names(
    wanted: str, *, gpus: tuple[str, ...] = ("0", "1"), backends: tuple[str, ...] = BOTH, **more: str
) -> list[str]:
    return [device.name for device in choose_devices(wanted, gpus=gpus, backends=backends, **more)]


class TestChoice:
    def test_all_is_every_gpu_or_the_cpu_where_none_can_be_used(self) -> None:
        assert names("all") == ["gpu0", "gpu1"]
        assert names("all", gpus=()) == ["cpu"]
        assert names("all", backends=("openvino",)) == ["cpu"]
        assert names("all", backend="openvino") == ["cpu"]

    def test_numbers_and_the_cpu_can_be_mixed(self) -> None:
        assert names("0,1") == ["gpu0", "gpu1"]
        assert names(" 1 , CPU ") == ["gpu1", "cpu"]

    def test_each_process_sees_only_its_device(self) -> None:
        (gpu,) = choose_devices("1", gpus=("0", "1"), backends=BOTH)
        assert gpu.environment["CUDA_VISIBLE_DEVICES"] == "1"
        assert gpu.environment["CARINA_BACKEND"] == "tensorrt"
        (cpu,) = choose_devices("cpu", gpus=("0",), backends=BOTH)
        assert cpu.environment == {"CUDA_VISIBLE_DEVICES": "", "CARINA_BACKEND": "openvino"}

    def test_a_backend_that_was_chosen_stays(self) -> None:
        (gpu,) = choose_devices("0", gpus=("0",), backends=("tensorrt", "torch"), backend="torch")
        assert gpu.environment["CARINA_BACKEND"] == "torch"
        (cpu,) = choose_devices("cpu", gpus=(), backends=BOTH, backend="openvino")
        assert "CARINA_BACKEND" not in cpu.environment

    @pytest.mark.parametrize(
        ("wanted", "said"),
        [
            ("0,0", "twice"),
            ("7", "no GPU 7: this machine has 0, 1"),
            ("gpu", "write all, cpu, or GPU numbers"),
            ("all,cpu", "write all, cpu, or GPU numbers"),
            ("", "write all, cpu, or GPU numbers"),
        ],
    )
    def test_what_there_is_not_is_refused(self, wanted: str, said: str) -> None:
        with pytest.raises(CarinaError, match=said):
            names(wanted)

    def test_a_gpu_that_no_backend_runs_on_is_refused(self) -> None:
        with pytest.raises(CarinaError, match="No engine backend for GPU 0"):
            names("0", backends=("openvino",))
        with pytest.raises(CarinaError, match="none that nvidia-smi shows"):
            names("0", gpus=())


def test_gpus_are_those_that_nvidia_smi_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_gpus() == ()
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 0\necho 1\n")
    program.chmod(0o755)
    assert find_gpus() == ("0", "1")
    program.write_text("#!/bin/sh\necho 'no driver'\nexit 9\n")
    assert find_gpus() == ()


class TestOneWorker:
    device = Device("cpu", {"CARINA_TEST_DEVICE": "yes"})

    def ended(self, worker: DeviceWorker) -> None:
        worker._process.wait(60)

    def test_it_gets_its_devices_environment(self) -> None:
        worker = DeviceWorker(
            self.device, python("import os; raise SystemExit(os.environ['CARINA_TEST_DEVICE'] != 'yes')")
        )
        self.ended(worker)
        worker.look()
        assert worker.ended

    def test_one_that_dies_is_started_again_after_waits_that_grow(self) -> None:
        now = [0.0]
        worker = DeviceWorker(self.device, python("import os; os.kill(os.getpid(), 9)"), clock=lambda: now[0])
        waits = []
        for _ in range(8):
            self.ended(worker)
            before, start = worker.process_id, now[0]
            worker.look()
            while worker.process_id == before:
                now[0] += 0.5
                worker.look()
            waits.append(now[0] - start)
        assert waits == [2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0]
        self.ended(worker)
        now[0] += 61.0
        worker.look()
        assert worker._wait == 1.0
        worker.wait(60)

    @pytest.mark.parametrize("code", [1, 2])
    def test_one_that_cannot_start_is_not_started_again(self, code: int) -> None:
        worker = DeviceWorker(self.device, python(f"raise SystemExit({code})"))
        self.ended(worker)
        with pytest.raises(CarinaError, match="device cpu could not start"):
            worker.look()
        assert worker.ended

    def test_one_that_could_start_once_may_fail_to_start_for_a_while(self, tmp_path: Path) -> None:
        once = tmp_path / "once"
        code = f"import os, pathlib; p = pathlib.Path({str(once)!r}); p.exists() and exit(1); p.touch(); os.abort()"
        now = [0.0]
        worker = DeviceWorker(self.device, python(code), clock=lambda: now[0])
        for _ in range(3):
            self.ended(worker)
            before = worker.process_id
            worker.look()
            now[0] += 100.0
            worker.look()
            assert worker.process_id != before
        self.ended(worker)
        assert worker._process.returncode == 1 and not worker.ended

    def test_one_that_does_not_end_in_time_is_killed(self) -> None:
        code = "import signal, time; signal.signal(15, signal.SIG_IGN); print(flush=True); time.sleep(600)"
        worker = DeviceWorker(self.device, python(code))
        worker.terminate()
        worker.wait(0.1)
        assert worker._process.returncode in (-signal.SIGKILL, -signal.SIGTERM)


STAYS = """
import pathlib, signal, sys, time
folder, name = map(pathlib.Path, sys.argv[1:])
def end(*_):
    (folder / f"{name}.ended").touch()
    raise SystemExit(0)
signal.signal(signal.SIGTERM, end)
(folder / f"{name}.started").touch()
time.sleep(600)
"""


class TestAllWorkers:
    devices = (Device("gpu0", {}), Device("gpu1", {}))

    def started(self, folder: Path) -> bool:
        return all((folder / f"{device.name}.started").exists() for device in self.devices)

    def test_stopping_ends_all_in_good_order(self, tmp_path: Path) -> None:
        stop = threading.Event()

        def run() -> None:
            run_devices(self.devices, lambda device: [*python(STAYS), str(tmp_path), device.name], stop)

        thread = threading.Thread(target=run)
        thread.start()
        servers.wait_until(lambda: self.started(tmp_path), "the workers did not start")
        stop.set()
        thread.join(60)
        assert not thread.is_alive()
        assert sorted(file.name for file in tmp_path.glob("*.ended")) == ["gpu0.ended", "gpu1.ended"]

    def test_it_ends_when_all_ended_by_themselves(self) -> None:
        run_devices(self.devices, lambda device: python("pass"), threading.Event())

    def test_one_that_cannot_start_ends_the_others(self, tmp_path: Path) -> None:
        gives_up = "import pathlib, sys, time\nwhile not pathlib.Path(sys.argv[1]).exists(): time.sleep(0.02)\nexit(1)"

        def command(device: Device) -> list[str]:
            if device.name == "gpu0":
                return [*python(STAYS), str(tmp_path), device.name]
            return [*python(gives_up), str(tmp_path / "gpu0.started")]

        with pytest.raises(CarinaError, match="device gpu1 could not start"):
            run_devices(self.devices, command, threading.Event())
        assert (tmp_path / "gpu0.ended").exists()


def test_a_worker_of_the_command_line_ends_with_its_parent(tmp_path: Path) -> None:
    """``carina worker --devices cpu``: named after host and device, restarted when killed, gone with its parent."""
    environment = {**os.environ, "CARINA_HOME": str(tmp_path / "home"), "CARINA_DECODERS": "1", "CARINA_BROKER_URL": ""}
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-m", "worker.cli", "worker", "--devices", "cpu", "--name", "ward"]
    log = (tmp_path / "log").open("wb")
    parent = psutil.Popen(command, cwd=root, env=environment, stderr=log)
    lock = tmp_path / "home" / "workers" / "ward-cpu.lock"

    def child() -> psutil.Process | None:
        for item in parent.children():
            with contextlib.suppress(psutil.Error):
                if "--with-parent" in item.cmdline():
                    return item
        return None

    try:
        servers.wait_until(lock.exists, "the worker did not register", 120)
        first = child()
        assert first is not None and first.cmdline()[-2:] == ["--name", "ward-cpu"]
        first.kill()
        servers.wait_until(lambda: (now := child()) is not None and now.pid != first.pid, "it was not restarted", 60)
        second = child()
        parent.kill()
        parent.wait()
        assert second is not None
        psutil.wait_procs([second], timeout=30)
        assert not second.is_running()
    finally:
        for item in [*parent.children(recursive=True), parent] if parent.is_running() else []:
            item.kill()
        log.close()
