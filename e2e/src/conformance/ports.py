"""A server that does what the first line of each connection asks for. Prints its port."""
import hashlib
import socket
import socketserver
import struct
import sys
import time

PATTERN = bytes(range(256)) * 256


class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    request_queue_size = 256

    # Nobody reads what it prints: it would wait for that, with its connection open.
    def handle_error(self, *_):
        pass


class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        order, *numbers = self.rfile.readline().split()
        getattr(self, order.decode())(*map(int, numbers))

    def echo(self):
        while part := self.rfile.read1(65536):
            self.wfile.write(part)

    # Answers only when the other direction has ended.
    def half(self):
        self.wfile.write(b"begin ")
        rest = self.rfile.read()
        self.wfile.write(rest + b" after")

    def sink(self, length):
        digest, left = hashlib.sha256(), length
        while left and (part := self.rfile.read1(65536)):
            digest.update(part)
            left -= len(part)
        self.wfile.write(digest.hexdigest().encode())

    def source(self, length):
        while length:
            part = PATTERN[:length]
            self.wfile.write(part)
            length -= len(part)

    # Breaks the connection off in the middle of an answer.
    def reset(self):
        self.wfile.write(b"half an ans")
        self.rfile.readline()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    # Says how the connection ended.
    def watch(self):
        self.wfile.write(b"watched")
        try:
            end = f"ended after {len(self.rfile.read())}"
        except ConnectionResetError:
            end = "reset"
        with open("watched", "a") as file:
            print(end, file=file)

    # Reads nothing.
    def stall(self):
        time.sleep(1000)


address = sys.argv[2] if sys.argv[2:] else "127.0.0.1"
Server.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
with Server((address, int(sys.argv[1])), Handler) as server:
    print(server.server_address[1], flush=True)
    server.serve_forever()
