"""Joins standard input and output, which are one socket, with a TCP port on the host's loopback.

QEMU's user networking starts it for each connection of the guest to a ``guestfwd`` port (QEMU's own
``-tcp:`` target serves only one connection, ever).
"""

import socket
import sys
import threading


def _copy(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        pass  # one side is gone; the other copy ends on its own


def main() -> None:
    guest = socket.socket(fileno=0)
    with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as service:
        answer = threading.Thread(target=_copy, args=(service, guest))
        answer.start()
        _copy(guest, service)
        answer.join()


if __name__ == "__main__":
    main()
