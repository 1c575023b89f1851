"""A DICOM node that stores what it is sent, in this process: what it answers is up to the test."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from pydicom import Dataset
from pynetdicom import AE, AllStoragePresentationContexts, evt
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]
from server_process import free_port


class DicomNode:
    """C-STORE and C-ECHO on a port of the loopback interface; keeps its port when it is started again.

    ``status`` is asked for the answer to each object (0 means stored), before it is kept in ``received``.
    """

    def __init__(self, ae_title: str = "PACS", *, require_calling: str = "", tls: ssl.SSLContext | None = None) -> None:
        self.ae_title = ae_title
        self.port = free_port()
        self.received: list[Dataset] = []
        self.status: Callable[[Dataset], int] = lambda dataset: 0
        self.contexts: list[Any] = [context.abstract_syntax for context in AllStoragePresentationContexts]
        self.associations = 0
        self.calling: set[str] = set()
        self._require_calling = require_calling
        self._tls = tls
        self._lock = threading.Lock()
        self._server: Any = None

    @property
    def uids(self) -> list[str]:
        return [str(dataset.SOPInstanceUID) for dataset in self.received]

    def start(self) -> Self:
        node = AE(ae_title=self.ae_title)
        node.require_called_aet = True
        if self._require_calling:
            node.require_calling_aet = [self._require_calling]
        node.add_supported_context(Verification)
        for context in self.contexts:
            node.add_supported_context(context)
        handlers = [(evt.EVT_C_STORE, self._store), (evt.EVT_ACCEPTED, self._accepted)]
        self._server = node.start_server(
            ("127.0.0.1", self.port), block=False, evt_handlers=handlers, ssl_context=self._tls
        )
        return self

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _store(self, event: Any) -> int:
        dataset = event.dataset
        dataset.file_meta = event.file_meta
        status = self.status(dataset)
        if status == 0:
            with self._lock:
                self.received.append(dataset)
        return status

    def _accepted(self, event: Any) -> None:
        with self._lock:
            self.associations += 1
            self.calling.add(str(event.assoc.requestor.ae_title))
