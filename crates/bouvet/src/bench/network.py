"""What a network does, from where this runs: prints a line of figures for each time but the first, as JSON.

    network.py <host> <port> <times> <length> <connections> <answers>
"""

import json, socket, sys, time

HOST, PORT, TIMES, LENGTH, CONNECTIONS, ANSWERS = sys.argv[1], *map(int, sys.argv[2:])
PART = bytes(256 * 1024)


def connect(order):
    connection = socket.create_connection((HOST, PORT), 60)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.sendall(order)
    return connection


def down():
    with connect(b"d") as connection:
        buffer = bytearray(PART)
        while connection.recv_into(buffer):
            pass


def up():
    with connect(b"u") as connection:
        for _ in range(0, LENGTH, len(PART)):
            connection.sendall(PART)
        assert connection.recv(1) == b"!"


def connections():
    for _ in range(CONNECTIONS):
        with connect(b"ea") as connection:
            assert connection.recv(1) == b"a"


def answer():
    """The median of many, in milliseconds."""
    took = []
    with connect(b"e") as connection:
        for _ in range(ANSWERS):
            began = time.monotonic()
            connection.sendall(b"x")
            assert connection.recv(1) == b"x"
            took.append((time.monotonic() - began) * 1000)
    return sorted(took)[ANSWERS // 2]


def timed(work):
    began = time.monotonic()
    work()
    return time.monotonic() - began


for number in range(TIMES + 1):
    figures = {
        "down": LENGTH / 1e6 / timed(down),
        "up": LENGTH / 1e6 / timed(up),
        "connections": CONNECTIONS / timed(connections),
        "answer": answer(),
    }
    # The first time is to get ready by.
    if number:
        print(json.dumps(figures), flush=True)
