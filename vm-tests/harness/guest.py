"""An s390x guest under QEMU's emulation (TCG), on request with the software ultravisor.

    with Guest(disks=[Disk(image, "system")], host_keys=[key], network=Network()) as guest:
        guest.wait_for("login:", 300)
        guest.ssh("systemctl poweroff", identity)
        assert guest.wait(60) == "guest-shutdown"

Guest RAM is an anonymous file shared with QEMU: nothing of it reaches a disk. The network lets the guest
reach nothing but the host ports it is given, and only on the host's loopback.

QEMU 7.2 knows no IPL without clear: a guest that booted from a disk and is to reboot has to write 1 to
/sys/firmware/reipl/ccw/clear before, otherwise it ends in a disabled wait ("guest-panic").
"""

from __future__ import annotations

import base64
import os
import re
import shlex
import socket
import subprocess
import sys
import tempfile
import threading
import time
from codecs import getincrementaldecoder
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from mmap import mmap
from pathlib import Path
from types import TracebackType
from typing import ClassVar

from qemu.qmp import ConnectError

from harness import relay, ultravisor
from harness.gdbstub import GENERAL, PSW_ADDRESS, PSW_MASK, GdbStub, StubError
from harness.monitor import Event, Monitor

QEMU = "qemu-system-s390x"
SERVICES_ADDRESS = "10.0.2.100"  # where the guest finds the host's services; the network is 10.0.2.0/24

_MIGRATION_TIMEOUT = 30.0  # seconds to write or read the state of the devices
_LAST_LINES = 40  # of the console, in an error
_MIB = 1 << 20
_RETRY_INTERVAL = 1.0  # seconds between attempts of ssh


class GuestError(Exception):
    """The guest did not do what it was waited for; the text ends with its last words on the console."""


@dataclass(frozen=True)
class Disk:
    """A virtio disk, a file or the URL of a server; with ``snapshot`` what the guest writes is dropped.
    A file that guests share has to be ``read_only``: QEMU locks it.

    ``cache`` is QEMU's: "unsafe" lets the host's page cache do the syncing, and what the guest has written
    survives QEMU; "writeback" passes each flush on. ``loadparm``: what the operator chooses of its boot map.
    """

    path: Path | str
    serial: str
    format: str = "qcow2"
    snapshot: bool = False
    cache: str = "unsafe"
    read_only: bool = False
    loadparm: str = ""


@dataclass(frozen=True)
class Network:
    """A network card with ssh forwarded from a free port of 127.0.0.1.

    ``services``: port the guest sees on SERVICES_ADDRESS -> port on the host's 127.0.0.1. There is no name
    server and no route to anywhere else. ``capture`` gets every packet, in pcap format.
    """

    services: Mapping[int, int] = field(default_factory=dict)
    capture: Path | None = None


@dataclass(frozen=True)
class Direct:
    """A kernel, or a Secure Execution image, that QEMU loads itself instead of booting the first disk."""

    kernel: Path
    initrd: Path | None = None
    command_line: str = ""


@dataclass(frozen=True)
class Saved:
    """A guest stopped half way, in two files: its memory (sparse) and the state of its devices.

    Any number of guests go on from there, each with its own disks. They must have the same devices; what the
    kernel has not read of the disks until then may differ.
    """

    memory: Path
    devices: Path


@dataclass(frozen=True)
class Start:
    """One time the guest asked to become a Secure Execution guest; ``seconds`` the answer took."""

    key: ultravisor.HostKey | None
    refusal: ultravisor.Refused | None
    seconds: float


class Ultravisor:
    """Serves the guest's starts, reboots included, until it ends. ``keys`` may be replaced in between."""

    def __init__(self, memory: mmap, keys: Sequence[ultravisor.HostKey]) -> None:
        self.keys = list(keys)
        self.starts: list[Start] = []
        self._memory = memory

    @property
    def refusal(self) -> ultravisor.Refused | None:
        return self.starts[-1].refusal if self.starts else None

    def serve(self, stub: GdbStub) -> None:
        """Returns when the guest is gone or has been refused; a refused guest stays stopped."""
        stub.set_breakpoint(ultravisor.ENTRY_ADDRESS)
        stub.resume()
        while stub.wait_for_breakpoint():
            if ultravisor.holds_stage3a(self._memory):
                self._start(stub)
            else:
                stub.step_over_breakpoint(ultravisor.ENTRY_ADDRESS)
            if self.refusal:
                return
            stub.resume()

    def _start(self, stub: GdbStub) -> None:
        began = time.monotonic()
        try:
            opened = ultravisor.start(self._memory, self.keys)
        except ultravisor.Refused as refusal:
            self.starts.append(Start(None, refusal, time.monotonic() - began))
            return
        for number in range(16):  # as after the initial CPU reset
            stub.write_register(GENERAL + number, 0)
        stub.write_register(PSW_MASK, opened.psw.mask)
        stub.write_register(PSW_ADDRESS, opened.psw.address)
        self.starts.append(Start(opened.key, None, time.monotonic() - began))


class Guest:
    """A context manager: the guest runs inside the ``with`` block.

    ``host_keys``: private host keys of the machine it runs on; None: a machine without Secure Execution,
    where stage3a gives up by itself. ``console_log`` gets what the guest prints, ``on_line`` each line.
    ``saved``: where it goes on instead of being started.
    """

    ran: ClassVar[list[float]] = []
    """Seconds that each guest of this process has run, until somebody clears it."""

    def __init__(
        self,
        *,
        disks: Sequence[Disk] = (),
        direct: Direct | None = None,
        memory_mib: int = 1024,
        cpus: int = 1,
        host_keys: Sequence[ultravisor.HostKey] | None = None,
        network: Network | None = None,
        console_log: Path | None = None,
        on_line: Callable[[str], None] | None = None,
        saved: Saved | None = None,
    ) -> None:
        self._disks, self._direct, self._memory_mib, self._network = disks, direct, memory_mib, network
        self._host_keys, self._cpus, self.saved = None if saved else host_keys, cpus, saved
        self._console_log, self._on_line = console_log, on_line
        self._resources = ExitStack()
        self._changed = threading.Condition()
        self._console = ""
        self._matched = 0  # up to here the console was consumed by wait_for
        self._failure: BaseException | None = None
        self._ssh_sockets: str | None = None
        self.events: list[Event] = []
        self.ultravisor: Ultravisor | None = None

    def __enter__(self) -> Guest:
        try:
            self._launch()
        except BaseException:
            self._resources.close()
            raise
        self._began = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._resources.close()
        Guest.ran.append(time.monotonic() - self._began)

    # --- what a test asks ---

    @property
    def console(self) -> str:
        """Everything the guest printed so far."""
        with self._changed:
            return self._console

    @property
    def refusal(self) -> ultravisor.Refused | None:
        return self.ultravisor.refusal if self.ultravisor else None

    @property
    def end(self) -> str | None:
        """None while the guest runs; else "refused", "guest-panic" or QEMU's reason ("guest-shutdown" …)."""
        if self.refusal:
            return "refused"
        for event in self.events:
            if event["event"] == "GUEST_PANICKED":
                return "guest-panic"
            if event["event"] == "SHUTDOWN":
                return str(event["data"]["reason"])
        return "qemu-exited" if self._process.poll() is not None else None

    def wait_for(self, pattern: str, timeout: float) -> re.Match[str]:
        """Wait until the console shows ``pattern``, after what earlier calls found. Raises GuestError."""
        deadline = time.monotonic() + timeout
        expression = re.compile(pattern)
        with self._changed:
            while True:
                ended = self._failure or self.end
                if ended:
                    self._drain_console()
                if found := expression.search(self._console, self._matched):
                    self._matched = found.end()
                    return found
                if ended:
                    raise self.error(f"ended ({ended}) without {pattern!r}") from self._failure
                if not self._changed.wait(deadline - time.monotonic()) and time.monotonic() > deadline:
                    raise self.error(f"did not print {pattern!r} within {timeout:g} s")

    def wait(self, timeout: float) -> str:
        """Wait until the guest ends and return how, see ``end``. Raises GuestError."""
        with self._changed:
            self._changed.wait_for(lambda: self._failure or self.end, timeout)
            if self._failure or not (end := self.end):
                raise self.error(f"did not end within {timeout:g} s") from self._failure
            self._drain_console()
            return end

    def ssh(
        self, command: str, identity: Path, *, timeout: float = 300, user: str = "root", stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the guest; tries again until ``timeout`` while there is no connection.

        The exit code is the command's. The guest's host key is not checked: only loopback lies between.
        All commands of a user go through one connection: another one takes the emulated machine seconds.
        """
        deadline = time.monotonic() + timeout
        argv = ["ssh", "-F", "none", "-p", str(self._ssh_port()), "-i", str(identity), f"{user}@127.0.0.1"]
        for option in (
            "BatchMode=yes", "IdentitiesOnly=yes", "StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null",
            "LogLevel=ERROR", "ConnectTimeout=20", "ServerAliveInterval=20",
            "ControlMaster=auto", "ControlPersist=yes", f"ControlPath={self._ssh_directory()}/%r",
        ):  # fmt: skip
            argv[1:1] = ["-o", option]
        while True:
            left = deadline - time.monotonic()
            try:
                done = subprocess.run(
                    [*argv, "--", command], capture_output=True, text=True, errors="replace",
                    input=stdin, timeout=max(left, 1),
                )  # fmt: skip
            except subprocess.TimeoutExpired:
                raise self.error(f"did not finish {command!r} within {timeout:g} s") from None
            if done.returncode != 255:  # ssh's own failure
                return done
            if self.end or left < _RETRY_INTERVAL:
                raise self.error(f"ssh for {command!r} failed: {done.stderr.strip()}")
            time.sleep(_RETRY_INTERVAL)

    def send(self, content: bytes, path: str, identity: Path) -> None:
        """Make a file in the guest, and the directories above it."""
        command = f"mkdir -p $(dirname {path}) && base64 -d > {path}"
        done = self.ssh(command, identity, stdin=base64.b64encode(content).decode())
        if done.returncode:
            raise self.error(f"did not take {path}: {done.stderr.strip()}")

    def pause(self) -> None:
        self.monitor.execute("stop")

    def resume(self) -> None:
        self.monitor.execute("cont")

    def written(self) -> list[int]:
        """Bytes the guest has written to each of its disks until now."""
        devices = {each["device"]: each["stats"] for each in self.monitor.execute("query-blockstats")}
        return [devices[f"disk{number}"]["wr_bytes"] for number in range(1, len(self._disks) + 1)]

    def snapshot(self, number: int, overlay: Path) -> None:
        """From now on what the guest writes to this disk (the first is 1) goes to ``overlay``; its file stays
        as it is."""
        file = {"snapshot-file": str(overlay), "format": "qcow2"}
        self.monitor.execute("blockdev-snapshot-sync", device=f"disk{number}", **file)

    def save(self, directory: Path) -> Saved:
        """Stop for good, so that other guests go on from here."""
        saved = Saved(directory / "memory", directory / "devices")
        self.pause()
        self._migrate("migrate", f"exec:cat > {shlex.quote(str(saved.devices))}")
        self._copy_memory(f"/dev/fd/{self._memory_fd}", saved.memory)
        return saved

    def kill(self) -> None:
        """Cut the power."""
        self._process.kill()
        self._process.wait()
        self._notify()

    # --- QEMU ---

    def _launch(self) -> None:
        """Each resource is given back in reverse order: QEMU ends before its threads, then go its files."""
        self._make_memory()
        monitor, debugger = self._start_qemu()
        self._in_thread("console", self._read_console)
        try:
            self.monitor = Monitor(monitor, self._record_event)
            self._resources.callback(self.monitor.close)
            stub = self._resources.enter_context(GdbStub(debugger)) if self.ultravisor else None
        except (ConnectError, StubError) as error:
            raise self.error("did not start") from error
        if self.saved:
            self._migrate("migrate-incoming", f"exec:cat {shlex.quote(str(self.saved.devices))}")
            self.resume()
        if stub:
            self._in_thread("ultravisor", lambda: self._serve_ultravisor(stub))

    def _migrate(self, command: str, uri: str) -> None:
        """Write or read the state of the devices; the RAM, which is a file, is left out."""
        capabilities = [{"capability": "x-ignore-shared", "state": True}]
        self.monitor.execute("migrate-set-capabilities", capabilities=capabilities)
        self.monitor.execute(command, uri=uri)
        deadline = time.monotonic() + _MIGRATION_TIMEOUT
        while (status := self.monitor.execute("query-migrate").get("status")) != "completed":
            if status == "failed" or time.monotonic() > deadline:
                raise self.error("could not be saved, or go on from there")
            time.sleep(0.05)

    def _make_memory(self) -> None:
        """A descriptor of the guest's RAM, for QEMU to inherit; the ultravisor maps it for itself."""
        self._memory_fd = os.memfd_create("guest-ram")
        self._resources.callback(os.close, self._memory_fd)
        if self.saved:
            self._copy_memory(self.saved.memory, f"/dev/fd/{self._memory_fd}")
        os.ftruncate(self._memory_fd, self._memory_mib * _MIB)
        if self._host_keys is not None:
            memory = self._resources.enter_context(mmap(self._memory_fd, self._memory_mib * _MIB))
            self.ultravisor = Ultravisor(memory, self._host_keys)

    def _copy_memory(self, source: Path | str, target: Path | str) -> None:
        subprocess.run(["cp", "--sparse=always", source, target], check=True, pass_fds=[self._memory_fd])

    def _start_qemu(self) -> tuple[socket.socket, socket.socket]:
        """Returns our ends of its monitor and of its gdbstub."""
        self._qemu_log = self._resources.enter_context(os.fdopen(os.memfd_create("qemu-log"), "w+"))
        monitor, debugger = socket.socketpair(), socket.socketpair()
        theirs = [monitor[1].fileno(), debugger[1].fileno()]
        with monitor[1], debugger[1]:
            self._process = subprocess.Popen(
                self._command(*theirs), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=self._qemu_log, pass_fds=[self._memory_fd, *theirs],
            )  # fmt: skip
        self._resources.callback(self._stop_qemu)
        return self._resources.enter_context(monitor[0]), self._resources.enter_context(debugger[0])

    def _command(self, monitor: int, debugger: int) -> list[str]:
        return [
            # QEMU ends with the test, however that ends.
            "setpriv", "--pdeathsig=KILL", QEMU, "-nodefaults", "-no-user-config", "-display", "none",
            "-machine", "s390-ccw-virtio,accel=tcg,memory-backend=ram",
            # QEMU 7.2 gets vector instructions wrong that Linux uses for TCP checksums and for chacha.
            "-cpu", "max",
            "-m", f"{self._memory_mib}M", "-smp", str(self._cpus),
            "-object", f"memory-backend-file,id=ram,share=on,size={self._memory_mib}M,"
            f"mem-path=/dev/fd/{self._memory_fd}",
            "-chardev", f"socket,id=monitor,fd={monitor}", "-mon", "chardev=monitor,mode=control",
            "-chardev", f"socket,id=debugger,fd={debugger}",
            "-chardev", "stdio,id=console,signal=off", "-device", "sclpconsole,chardev=console",
            "-device", "virtio-rng-ccw,devno=fe.0.1001",
            # A guest that has ended waits for us to see how, and then to quit it.
            "-action", "shutdown=pause,panic=pause",
            *(["-incoming", "defer"] if self.saved else []),
            *self._ultravisor_options(), *self._boot_options(), *self._disk_options(),
            *self._network_options(),
        ]  # fmt: skip

    def _ultravisor_options(self) -> list[str]:
        return ["-S", "-gdb", "chardev:debugger"] if self.ultravisor else []

    def _boot_options(self) -> list[str]:
        if not self._direct:
            return []
        options = ["-kernel", str(self._direct.kernel)]
        if self._direct.initrd:
            options += ["-initrd", str(self._direct.initrd)]
        if self._direct.command_line:
            options += ["-append", self._direct.command_line]
        return options

    def _disk_options(self) -> list[str]:
        """Without a pinned device number virtio-ccw disks come in random order."""
        options = []
        for number, disk in enumerate(self._disks, start=1):
            snapshot, read_only = ("on" if wanted else "off" for wanted in (disk.snapshot, disk.read_only))
            options += [
                "-drive", f"if=none,id=disk{number},file={_quoted(disk.path)},format={disk.format},"
                f"snapshot={snapshot},readonly={read_only},cache={disk.cache},discard=unmap",
                "-device", f"virtio-blk-ccw,drive=disk{number},serial={disk.serial},devno=fe.0.{number:04x}"
                + (",bootindex=1" if number == 1 else "")
                + (f",loadparm={disk.loadparm}" if disk.loadparm else ""),
            ]  # fmt: skip
        return options

    def _network_options(self) -> list[str]:
        """``restrict=on`` drops all that the guest sends but answers to forwarded ports and ``guestfwd``."""
        if self._network is None:
            return []
        forwards = ["hostfwd=tcp:127.0.0.1:0-:22"]
        for seen, port in self._network.services.items():
            command = shlex.join([sys.executable, "-I", relay.__file__, str(port)])
            forwards.append(f"guestfwd=tcp:{SERVICES_ADDRESS}:{seen}-cmd:{_quoted(command)}")
        capture = []
        if self._network.capture:
            capture = ["-object", f"filter-dump,id=capture,netdev=net,file={_quoted(self._network.capture)}"]
        return [
            "-netdev", ",".join(["user,id=net,ipv6=off,restrict=on", *forwards]), *capture,
            "-device", "virtio-net-ccw,netdev=net,devno=fe.0.1000",
        ]  # fmt: skip

    def _ssh_directory(self) -> str:
        """Of the sockets of the connections, which end with the guest."""
        if self._ssh_sockets is None:
            self._ssh_sockets = self._resources.enter_context(tempfile.TemporaryDirectory(prefix="ssh-"))
        return self._ssh_sockets

    def _ssh_port(self) -> int:
        table = self.monitor.execute("human-monitor-command", **{"command-line": "info usernet"})
        if not (found := re.search(r"TCP\[HOST_FORWARD\]\s+\d+\s+127\.0\.0\.1\s+(\d+)", table)):
            raise self.error("has no network")
        return int(found[1])

    def _stop_qemu(self) -> None:
        self._process.kill()
        self._process.wait()

    # --- threads ---

    def _in_thread(self, name: str, work: Callable[[], None]) -> None:
        """Run ``work``, which ends once QEMU does; what it raises becomes the guest's failure."""

        def guarded() -> None:
            try:
                work()
            except BaseException as error:
                self._failure = error
                self._process.kill()
            self._notify()

        thread = threading.Thread(target=guarded, name=name, daemon=True)
        thread.start()
        self._resources.callback(thread.join)
        self._resources.callback(self._stop_qemu)
        if name == "console":
            self._console_reader = thread

    def _serve_ultravisor(self, stub: GdbStub) -> None:
        assert self.ultravisor is not None
        try:
            self.ultravisor.serve(stub)
        except StubError:
            if self._process.poll() is None:
                raise
        if self.refusal:
            self._process.kill()

    def _read_console(self) -> None:
        assert self._process.stdout is not None
        with ExitStack() as files:
            log = files.enter_context(self._console_log.open("wb")) if self._console_log else None
            stream = files.enter_context(self._process.stdout)
            decoder, unfinished = getincrementaldecoder("utf-8")("replace"), ""
            while data := os.read(stream.fileno(), 65536):
                if log:
                    log.write(data)
                    log.flush()
                text = decoder.decode(data).replace("\r", "")
                with self._changed:
                    self._console += text
                    self._changed.notify_all()
                *lines, unfinished = (unfinished + text).split("\n")
                if self._on_line:
                    for line in lines:
                        self._on_line(line)

    def _record_event(self, event: Event) -> None:
        self.events.append(event)
        self._notify()

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _drain_console(self) -> None:
        """End QEMU and take in all that the guest had still printed."""
        self._stop_qemu()
        while self._console_reader.is_alive():
            self._changed.wait(0.1)

    def error(self, what: str) -> GuestError:
        self._qemu_log.seek(0)
        words = [self._qemu_log.read(), *self._console.splitlines()[-_LAST_LINES:]]
        return GuestError("\n".join([f"the guest {what}; its last words:", *filter(None, words)]))


def _quoted(value: str | Path) -> str:
    """A value inside of a QEMU option: commas are doubled."""
    return str(value).replace(",", ",,")
