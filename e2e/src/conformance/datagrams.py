"""Answers each datagram with itself. Prints its port."""
import socket
import sys

address = sys.argv[2] if sys.argv[2:] else "127.0.0.1"
server = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
server.bind((address, int(sys.argv[1])))
print(server.getsockname()[1], flush=True)
while True:
    data, peer = server.recvfrom(65535)
    if data == b"who":
        data = str(peer[1]).encode()
    server.sendto(data, peer)
