"""main.py EGRESSD SCRATCH [http] [names]: in a namespace of its own, see `run`."""

import subprocess
import sys

import http_rows
import name_rows
from common import Count, Egressd
from servers import Certificates


def main():
    binary, scratch, *tables = sys.argv[1:]
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    # BIND listens on what an interface has.
    for number in range(2, 6):
        subprocess.run(["ip", "address", "add", f"127.0.0.{number}/8", "dev", "lo"], check=True)
    count = Count()
    if not tables or "http" in tables:
        certificates = Certificates(scratch)
        more = f'[tls]\nextra_ca = ["{certificates("ca.pem")}"]\n[delivery]\ndeadline = "10s"\n'
        egressd = Egressd(binary, scratch, "http", "127.0.0.1:53", more)
        http_rows.run(count, egressd, scratch, certificates)
        egressd.stop()
    if not tables or "names" in tables:
        name_rows.run(count, binary, scratch)
    count.end()


main()
