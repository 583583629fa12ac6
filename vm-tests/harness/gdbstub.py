"""The few words of the gdb remote serial protocol that the software ultravisor says to QEMU's stub.

Source: the gdb manual, appendix "gdb Remote Serial Protocol"; QEMU gdbstub/gdbstub.c and
target/s390x/gdbstub.c (the core registers are PSW mask, PSW address, then the general registers).
"""

from __future__ import annotations

import socket
from types import TracebackType

_TIMEOUT = 30.0  # seconds for the answer to anything but "continue"
_MAX_PACKET = 1 << 20
_BREAKPOINT_HIT = b"T05"  # SIGTRAP; QEMU also tells of a pause (T02) and of a shutdown (T03)
_HARDWARE = "1"  # kind of breakpoint: kept outside of guest memory, so it outlives a reboot
PSW_MASK, PSW_ADDRESS, GENERAL = 0, 1, 2  # register numbers; GENERAL + n is general register n


class StubError(Exception):
    """QEMU's stub refused a request, broke the protocol or is gone."""


class GdbStub:
    """A connection to QEMU's gdbstub. The guest is stopped from the moment it stands."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._socket.settimeout(_TIMEOUT)
        self._buffer = bytearray()
        # Until the stub has been asked for its description it does not answer "p" and "P".
        self._request("qXfer:features:read:target.xml:0,ffb")

    def __enter__(self) -> GdbStub:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def read_register(self, number: int) -> int:
        return int(self._request(f"p{number:x}"), 16)

    def write_register(self, number: int, value: int) -> None:
        self._expect_ok(f"P{number:x}={value:016x}")

    def set_breakpoint(self, address: int) -> None:
        self._expect_ok(f"Z{_HARDWARE},{address:x},2")

    def remove_breakpoint(self, address: int) -> None:
        self._expect_ok(f"z{_HARDWARE},{address:x},2")

    def resume(self) -> None:
        self._send("c")

    def wait_for_breakpoint(self) -> bool:
        """Block until a breakpoint is hit; False if the guest is gone."""
        self._socket.settimeout(None)
        try:
            while packet := self._receive():
                if packet.startswith(_BREAKPOINT_HIT):
                    return True
                if packet[:1] in b"WX":
                    return False
            return False
        finally:
            self._socket.settimeout(_TIMEOUT)

    def step_over_breakpoint(self, address: int) -> None:
        """Execute the instruction at ``address``, where the guest stands; it stays stopped behind it."""
        self.remove_breakpoint(address)
        self._send("s")
        if not self.wait_for_breakpoint():
            raise StubError("the guest ended")
        self.set_breakpoint(address)

    def _expect_ok(self, text: str) -> None:
        if (answer := self._request(text)) != b"OK":
            raise StubError(f"{text!r} was answered with {answer!r}")

    def _request(self, text: str) -> bytes:
        self._send(text)
        answer = self._receive()
        if answer is None or not answer or answer[:1] == b"E":
            raise StubError(f"{text!r} was answered with {answer!r}")
        return answer

    def _send(self, text: str) -> None:
        data = text.encode()
        try:
            self._socket.sendall(b"$%b#%02x" % (data, sum(data) & 0xFF))
        except OSError as error:
            raise StubError(f"the stub is gone: {error}") from error

    def _receive(self) -> bytes | None:
        """The next packet, acknowledged; None if the connection is closed."""
        while True:
            start, end = self._buffer.find(b"$"), self._buffer.find(b"#")
            if 0 <= start < end and len(self._buffer) >= end + 3:
                packet, checksum = bytes(self._buffer[start + 1 : end]), self._buffer[end + 1 : end + 3]
                del self._buffer[: end + 3]
                if int(checksum, 16) != sum(packet) & 0xFF:
                    raise StubError(f"wrong checksum on {packet!r}")
                self._socket.sendall(b"+")
                return packet
            if not (data := self._read()) or len(self._buffer) > _MAX_PACKET:
                return None
            self._buffer += data

    def _read(self) -> bytes:
        try:
            return self._socket.recv(4096)
        except ConnectionError:
            return b""
        except TimeoutError:
            raise StubError("the stub does not answer") from None
