"""The control channel of a fork server: JSON datagrams that can carry descriptors.

A ``SOCK_SEQPACKET`` pair keeps message boundaries and tells both ends when the other is gone. It
lies between two processes of one user only: what crosses is trusted.

Supervisor to server::

    {"op": "start", "job": PATH, "start": "fork"|"spawn"}    + descriptors [result pipe, log]
    {"op": "kill", "grace": bool}

Server to supervisor::

    {"e": "ready", "threads": int, "cuda": bool}   or   {"e": "unfit", "reason", "traceback"}
    {"e": "forked", "pid"}                         or   {"e": "unforked", "reason", "errno"}
    {"e": "exit", "status", "max_rss_bytes", "cpu_s", "strays", "stuck"}
"""

from __future__ import annotations

import json
import socket
from typing import Any

Message = dict[str, Any]

_MAX_BYTES = 1 << 16
_MAX_DESCRIPTORS = 4


def pair() -> tuple[socket.socket, socket.socket]:
    """Two connected ends; neither is inherited by accident."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send(end: socket.socket, message: Message, descriptors: tuple[int, ...] = ()) -> None:
    """Send one message; raises ``OSError`` where the other end is gone."""
    socket.send_fds(end, [json.dumps(message).encode()], list(descriptors))


def receive(end: socket.socket) -> tuple[Message, list[int]] | None:
    """The next message and its descriptors; None where the other end is gone."""
    try:
        data, descriptors, _, _ = socket.recv_fds(
            end, _MAX_BYTES, _MAX_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC
        )
    except ConnectionResetError:
        return None
    if not data:
        return None
    return json.loads(data), descriptors
