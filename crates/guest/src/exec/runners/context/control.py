"""The control socket: requests in, messages out."""

import _socket
import json
import os
import sys
import threading

MAX_REQUEST_BYTES = 64 * 1024


class Control:
    """Messages are sent whole, whichever thread sends them, and whatever interrupts it."""

    def __init__(self):
        self.socket = _socket.socket(fileno=os.dup(0))
        self.lock = threading.Lock()
        self.owner = os.getpid()
        self.is_running = self.is_sending = self.was_interrupted = False

    def is_ours(self):
        """Whether this process is the context, and not a fork that a cell made: messages of two would mix."""
        return self.owner == os.getpid()

    def receive(self):
        """The next request, and its standard input."""
        data, ancillary, _, _ = self.socket.recvmsg(MAX_REQUEST_BYTES, _socket.CMSG_LEN(4))
        if not data:
            os._exit(0)  # The service has gone.
        [(_, _, number)] = ancillary
        return json.loads(data), int.from_bytes(number, sys.byteorder)

    def send(self, message, *bodies):
        is_main = threading.current_thread() is threading.main_thread()
        if is_main:
            self.is_sending = True
        try:
            with self.lock:
                for part in [json.dumps(message).encode() + b"\n", *bodies]:
                    self.socket.sendall(part)
        finally:
            if is_main:
                self.is_sending = False
        if is_main and self.was_interrupted:
            self.was_interrupted = False
            raise KeyboardInterrupt


control = Control()
