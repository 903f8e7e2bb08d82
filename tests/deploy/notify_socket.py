"""Stands in for systemd: starts a service with a notify socket and a watchdog, and says what it was told.

    notify_socket.py SCRIPT COMMAND…     SCRIPT: what to do and wait for, comma-separated, in order: a state to wait for
                                         (READY=1), or a signal to send (HUP, TERM)

Prints each message as it comes; exit 0 when every wait was met and the service ended with 0. LIMIT_SECONDS is the
end of each wait: a busy machine is no failure.
"""

import os
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile

LIMIT_SECONDS = 180
WATCHDOG_SECONDS = 2


def main():
    script, command = sys.argv[1].split(","), sys.argv[2:]
    with tempfile.TemporaryDirectory() as directory:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        listener.bind(f"{directory}/notify")
        # The service may run as another user.
        os.chmod(directory, 0o711)
        os.chmod(f"{directory}/notify", 0o777)
        service = subprocess.Popen(
            command,
            env={
                **os.environ,
                "NOTIFY_SOCKET": f"{directory}/notify",
                "WATCHDOG_USEC": str(WATCHDOG_SECONDS * 1_000_000),
            },
        )
        try:
            for step in script:
                if hasattr(signal, f"SIG{step}"):
                    service.send_signal(getattr(signal, f"SIG{step}"))
                    continue
                while True:
                    if not select.select([listener], [], [], LIMIT_SECONDS)[0]:
                        sys.exit(f"waited {LIMIT_SECONDS} s for {step}")
                    told = listener.recv(4096).decode().split()
                    print(" ".join(told), flush=True)
                    if "RELOADING=1" in told and not any(re.fullmatch(r"MONOTONIC_USEC=\d+", word) for word in told):
                        sys.exit("RELOADING=1 without MONOTONIC_USEC")
                    if step in told:
                        break
            status = service.wait(LIMIT_SECONDS)
            sys.exit(f"the service ended with {status}" if status else 0)
        finally:
            service.kill()


main()
