"""A real Orthanc for tests: a small PACS with DICOM and DICOMweb doors, on the loopback interface.

Debian's packages ``orthanc`` and ``orthanc-dicomweb``. It can be killed, frozen and restarted like the
other servers of :mod:`server_process`; what it stores lies in a folder that goes with it.
"""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import requests
from pydicom import Dataset, dcmread
from pydicom.filebase import DicomBytesIO
from server_process import Server, ServersUnavailableError, free_port

PLUGIN = "libOrthancDicomWeb.so"
FOLDERS = ("/usr/share/orthanc/plugins", "/usr/lib/orthanc/plugins", "/usr/lib/orthanc")


class Orthanc(Server):
    """Orthanc with its DICOMweb plugin. ``options`` are further lines of its configuration.

    Raises
    ------
    ServersUnavailableError
        Orthanc or its plugin is not installed.
    """

    name = "orthanc"
    stop_signal = signal.SIGTERM

    def __init__(self, **options: Any) -> None:
        self.binary = shutil.which("Orthanc", path="/usr/sbin:/usr/bin:/usr/local/sbin")
        plugin = next((Path(folder, PLUGIN) for folder in FOLDERS if Path(folder, PLUGIN).exists()), None)
        if self.binary is None or plugin is None:
            raise ServersUnavailableError("Orthanc is not installed: apt-get install orthanc orthanc-dicomweb")
        super().__init__()
        self.http_port = free_port()
        self.configuration = {
            "Name": "test",
            "StorageDirectory": str(self.folder / "storage"),
            "IndexDirectory": str(self.folder / "storage"),
            "DicomAet": "ORTHANC",
            "DicomPort": self.port,
            "DicomCheckCalledAet": False,
            "HttpPort": self.http_port,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": True,
            "RegisteredUsers": {"carina": self.password},
            "Plugins": [str(plugin)],
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
            "StorageCompression": False,
            **options,
        }
        (self.folder / "orthanc.json").write_text(json.dumps(self.configuration))

    @property
    def url(self) -> str:
        """Of its REST interface."""
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def dicomweb_url(self) -> str:
        return f"{self.url}/dicom-web"

    @property
    def credentials(self) -> tuple[str, str]:
        """User name and password of HTTP Basic."""
        return "carina", self.password

    def command(self) -> list[str]:
        assert self.binary is not None
        return [self.binary, str(self.folder / "orthanc.json")]

    def answers(self) -> bool:
        try:
            return requests.get(f"{self.dicomweb_url}/studies?limit=1", auth=self.credentials, timeout=2).ok
        except requests.RequestException:
            return False

    def get(self, path: str) -> Any:
        """The JSON at ``path`` of its REST interface."""
        answer = requests.get(f"{self.url}/{path}", auth=self.credentials, timeout=30)
        answer.raise_for_status()
        return answer.json()

    def instances(self) -> list[Dataset]:
        """Everything it holds, as it holds it."""
        return [self.instance(identifier) for identifier in self.get("instances")]

    def instance(self, identifier: str) -> Dataset:
        answer = requests.get(f"{self.url}/instances/{identifier}/file", auth=self.credentials, timeout=30)
        answer.raise_for_status()
        return dcmread(DicomBytesIO(answer.content))

    def store(self, dataset: Dataset) -> None:
        """Put a film in."""
        stream = DicomBytesIO()
        dataset.save_as(stream, enforce_file_format=True)
        requests.post(f"{self.url}/instances", stream.getvalue(), auth=self.credentials, timeout=30).raise_for_status()
