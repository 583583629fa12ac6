"""QEMU's monitor (QMP) for code without asyncio: run a command, wait for an event."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from qemu.qmp import EventListener, QMPClient, QMPError

_TIMEOUT = 30.0  # seconds for a command's answer
Event = dict[str, Any]


class Monitor:
    """A connection to QMP whose events are collected from the start, also while nobody waits for one.

    Raises qemu.qmp.ConnectError if nobody answers at the other end.
    """

    def __init__(self, connection: socket.socket, on_event: Callable[[Event], None]) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="qmp", daemon=True)
        self._thread.start()
        self._client = QMPClient("guest")
        self._on_event = on_event
        self._await(self._connect(connection))

    def execute(self, command: str, **arguments: object) -> Any:
        """Run a command and return its answer; raises QMPError."""
        return self._await(self._client.execute(command, arguments))

    def close(self) -> None:
        try:
            self._await(self._close())
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    async def _connect(self, connection: socket.socket) -> None:
        listener = EventListener()
        self._client.register_listener(listener)
        self._collector = asyncio.create_task(self._collect(listener))
        await self._client.connect(connection)

    async def _collect(self, listener: EventListener) -> None:
        while True:
            self._on_event(dict(await listener.get()))

    async def _close(self) -> None:
        self._collector.cancel()
        with suppress(QMPError, EOFError, OSError):  # QEMU may be gone already
            await self._client.disconnect()

    def _await(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_TIMEOUT)
