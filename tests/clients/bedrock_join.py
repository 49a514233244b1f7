#!/usr/bin/env python3
"""A stand-in for a Bedrock client of the newer kind: joins by HTTP on TCP, then speaks UDP to the same number.

bedrock_join.py HOST PORT COUNT says all that bedrock_server.py knows, sends COUNT datagrams one after the other and waits for
each to come back, and prints a JSON line. A datagram that does not is sent again, as UDP may lose it.
"""

import http.client
import json
import re
import secrets
import socket
import struct
import sys

COOKIE = 0x2112A442
host, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])


def http_ask(method, path, body=None):
    connection = http.client.HTTPConnection(host, port, timeout=15)
    connection.request(method, path, body)
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


def exchange(packet, is_answer):
    """The answer to a datagram, and how often it was sent."""
    for tries in range(1, 16):
        udp.send(packet)
        try:
            while True:
                answer = udp.recv(65536)
                if is_answer(answer):
                    return answer, tries
        except TimeoutError:
            pass
    raise SystemExit(f"no answer to {packet[:8].hex()} after {tries} times")


spoken, _ = http_ask("GET", "/v1/join")
identity, fragment = secrets.token_hex(8), secrets.token_hex(4)
offer = f"v=0\r\no=- 1 1 IN IP4 0.0.0.0\r\ns=-\r\nt=0 0\r\na=ice-ufrag:{fragment}\r\na=ice-pwd:{secrets.token_hex(12)}\r\n"
status, answer = http_ask("POST", f"/v1/join/{identity}", offer)
theirs = re.search("a=ice-ufrag:(.*)\r\n", answer)[1]

udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.settimeout(1)
udp.connect((host, port))
name = f"{theirs}:{fragment}".encode()
attribute = struct.pack(">HH", 6, len(name)) + name + bytes(-len(name) % 4)
transaction = secrets.token_bytes(12)
request = struct.pack(">HHI", 1, len(attribute), COOKIE) + transaction + attribute
exchange(request, lambda a: a[:2] == b"\x01\x01" and a[8:20] == transaction)

back, again = 0, 0
for number in range(count):
    packet = b"\x17" + struct.pack(">I", number) + secrets.token_bytes(995)
    answer, tries = exchange(packet, lambda a: a[:5] == packet[:5])
    back += answer == packet
    again += tries - 1
print(json.dumps({"spoken": spoken, "status": status, "id": identity, "back": back, "again": again}))
