"""Ports for processes that find each other."""

import socket


def free_port():
    """A port that is free together with the next one."""
    while True:
        with socket.socket() as a, socket.socket() as b:
            a.bind(("localhost", 0))
            port = a.getsockname()[1]
            try:
                b.bind(("localhost", port + 1))
                return port
            except (OSError, OverflowError):
                continue
