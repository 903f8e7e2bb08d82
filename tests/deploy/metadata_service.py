"""A stand-in for the clouds' metadata services, on loopback: prints its address, then answers until it is killed.

    metadata_service.py first-mac second-mac

Answers as their documentation shows, and refuses what they refuse: AWS without a session token, Google and Azure
without their header.
"""

import json
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

FIRST, SECOND = sys.argv[1:3]
MACS = "/latest/meta-data/network/interfaces/macs/"
AWS = {
    "": f"{FIRST}/\n{SECOND}/",
    f"{FIRST}/device-number": "0",
    f"{FIRST}/local-ipv4s": "10.0.0.10\n10.0.0.11\n10.0.0.12\n10.0.0.13",
    f"{FIRST}/subnet-ipv4-cidr-block": "10.0.0.0/24",
    f"{FIRST}/ipv4-associations/": "198.51.100.10\n198.51.100.11\n198.51.100.12",
    f"{FIRST}/ipv4-associations/198.51.100.10": "10.0.0.10",
    f"{FIRST}/ipv4-associations/198.51.100.11": "10.0.0.11",
    f"{FIRST}/ipv4-associations/198.51.100.12": "10.0.0.12",
    f"{SECOND}/device-number": "1",
    f"{SECOND}/local-ipv4s": "10.0.1.10",
    f"{SECOND}/subnet-ipv4-cidr-block": "10.0.1.0/24",
    f"{SECOND}/ipv4-associations/": "203.0.113.10",
    f"{SECOND}/ipv4-associations/203.0.113.10": "10.0.1.10",
}
GOOGLE = [
    {
        "accessConfigs": [{"externalIp": "198.51.100.10", "type": "ONE_TO_ONE_NAT"}],
        "forwardedIps": ["198.51.100.11", "198.51.100.12"],
        "gateway": "10.0.0.1",
        "ip": "10.0.0.10",
        "ipAliases": [],
        "mac": FIRST,
        "subnetmask": "255.255.255.0",
    },
    {
        "accessConfigs": [{"externalIp": "203.0.113.10", "type": "ONE_TO_ONE_NAT"}],
        "forwardedIps": [],
        "gateway": "10.0.1.1",
        "ip": "10.0.1.10",
        "ipAliases": [],
        "mac": SECOND,
        "subnetmask": "255.255.255.0",
    },
]


def azure_interface(mac, subnet, addresses):
    return {
        "ipv4": {
            "ipAddress": [{"privateIpAddress": address, "publicIpAddress": ""} for address in addresses],
            "subnet": [{"address": subnet, "prefix": "24"}],
        },
        "ipv6": {"ipAddress": []},
        "macAddress": mac.replace(":", "").upper(),
    }


AZURE = {
    "interface": [
        azure_interface(FIRST, "10.0.0.0", ["10.0.0.10", "10.0.0.11", "10.0.0.12", "10.0.0.13"]),
        azure_interface(SECOND, "10.0.1.0", ["10.0.1.10"]),
    ]
}
AZURE_PUBLIC = {
    "loadbalancer": {
        "publicIpAddresses": [
            {"frontendIpAddress": public, "privateIpAddress": private}
            for public, private in (
                ("198.51.100.10", "10.0.0.10"),
                ("198.51.100.11", "10.0.0.11"),
                ("198.51.100.12", "10.0.0.12"),
                ("203.0.113.10", "10.0.1.10"),
            )
        ],
        "inboundRules": [],
        "outboundRules": [],
    }
}


class Service(BaseHTTPRequestHandler):
    def answer(self, status, text=""):
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def do_PUT(self):
        asked = self.headers.get("X-aws-ec2-metadata-token-ttl-seconds")
        self.answer(*((200, "a-token") if self.path == "/latest/api/token" and asked else (400,)))

    def do_GET(self):
        if self.path.startswith(MACS):
            if self.headers.get("X-aws-ec2-metadata-token") != "a-token":
                return self.answer(401)
            text = AWS.get(self.path.removeprefix(MACS))
            return self.answer(404) if text is None else self.answer(200, text)
        if self.path == "/computeMetadata/v1/instance/network-interfaces/?recursive=true":
            allowed = self.headers.get("Metadata-Flavor") == "Google"
            return self.answer(200, json.dumps(GOOGLE)) if allowed else self.answer(403)
        if self.path.startswith("/metadata/"):
            if self.headers.get("Metadata") != "true":
                return self.answer(400)
            if self.path == "/metadata/instance/network?api-version=2021-02-01":
                return self.answer(200, json.dumps(AZURE))
            if self.path == "/metadata/loadbalancer?api-version=2020-10-01":
                return self.answer(200, json.dumps(AZURE_PUBLIC))
        return self.answer(404)

    def log_message(self, *_):
        pass


server = HTTPServer(("127.0.0.1", 0), Service)
print(f"http://127.0.0.1:{server.server_port}", flush=True)
server.serve_forever()
