"""Tries connections as given users from given addresses, all at once, and says which got through.

    guard_probe.py serve ADDRESS PORT          answers TCP and UDP on ADDRESS: what it got, sent back
    guard_probe.py try CASE…                   CASE = name,uid,tcp|udp,from ('-': unbound),to,port
    guard_probe.py listen UID ADDRESS PORT     a TCP server of that user, which answers as `serve` does

`try` prints `NAME passed`, `NAME dropped` (nothing came back in time, or the kernel refused the packet) or
`NAME error: …` (refused, unreachable: the set-up is wrong) a case.
"""

import errno
import os
import socket
import sys

# Long for two ends of a veth pair, on a busy machine too: what has not come by then was dropped.
PATIENCE_SECONDS = 5


def family(address):
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def serve_tcp(listener):
    while True:
        connection, _ = listener.accept()
        connection.settimeout(PATIENCE_SECONDS)
        try:
            connection.sendall(connection.recv(64))
        except OSError:
            pass
        connection.close()


def serve(address, port):
    udp = socket.socket(family(address), socket.SOCK_DGRAM)
    udp.bind((address, port))
    tcp = socket.create_server((address, port), family=family(address), backlog=64)
    if os.fork() == 0:
        serve_tcp(tcp)
    print("ready", flush=True)
    while True:
        data, peer = udp.recvfrom(64)
        udp.sendto(data, peer)


def listen(uid, address, port):
    os.setuid(uid)
    listener = socket.create_server((address, port), family=family(address))
    print("ready", flush=True)
    serve_tcp(listener)


def attempt(uid, protocol, source, address, port):
    os.setuid(int(uid))
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    probe = socket.socket(family(address), kind)
    probe.settimeout(PATIENCE_SECONDS)
    try:
        if source != "-":
            probe.bind((source, 0))
        probe.connect((address, int(port)))
        probe.sendall(b"probe")
        return "passed" if probe.recv(64) == b"probe" else "error: another answer"
    except (TimeoutError, PermissionError):
        return "dropped"
    except OSError as error:
        return f"error: {errno.errorcode.get(error.errno, error)}"


def main():
    verb, *arguments = sys.argv[1:]
    if verb == "serve":
        serve(arguments[0], int(arguments[1]))
    elif verb == "listen":
        listen(int(arguments[0]), arguments[1], int(arguments[2]))
    else:
        for case in arguments:
            name, *rest = case.split(",")
            if os.fork() == 0:
                os.write(1, f"{name} {attempt(*rest)}\n".encode())
                os._exit(0)
        for _ in arguments:
            os.wait()


main()
