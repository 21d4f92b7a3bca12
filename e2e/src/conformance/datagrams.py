"""Answers each datagram with itself. Prints its port."""
import socket
import sys

family = socket.AF_INET6 if sys.argv[2:] == ["ipv6"] else socket.AF_INET
server = socket.socket(family, socket.SOCK_DGRAM)
server.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", int(sys.argv[1])))
print(server.getsockname()[1], flush=True)
while True:
    data, peer = server.recvfrom(65535)
    if data == b"who":
        data = str(peer[1]).encode()
    server.sendto(data, peer)
