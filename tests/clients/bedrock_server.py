#!/usr/bin/env python3
"""A stand-in for a Bedrock server: no game, only what goes over the wire when somebody looks at it or joins.

bedrock_server.py MOTD listens on TCP and UDP of one number and prints it as a JSON line. It speaks

- RakNet's unconnected ping (UDP): the answer has the MOTD. A ping is exactly 33 bytes;
- the newer joining: `GET /v1/join` says that it is spoken, `POST /v1/join/ID` takes an SDP offer and answers with one
  whose user fragment is new each time (HTTP on TCP). Then, on UDP of the same number, STUN Binding requests with that
  fragment in their USERNAME get the sender's address (RFC 8489), and from such an address everything that begins like DTLS
  (RFC 7983) comes back as it is. In the real thing it would be DTLS, with SCTP inside.

Each thing that happens is a JSON line. Ends with its standard input.
"""

import http.server
import json
import secrets
import socket
import struct
import sys
import threading

MAGIC = bytes.fromhex("00ffff00fefefefefdfdfdfd12345678")
COOKIE = 0x2112A442
motd = sys.argv[1]
fragments: set[str] = set()
proven: set[tuple[str, int]] = set()


def tell(**event):
    print(json.dumps(event), flush=True)


class Joining(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def reply(self, status, body):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.reply(200 if self.path == "/v1/join" else 404, b"")

    def do_POST(self):
        offer = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        if not self.path.startswith("/v1/join/") or "a=ice-ufrag:" not in offer:
            return self.reply(400, b"")
        fragment = secrets.token_hex(4)
        fragments.add(fragment)
        tell(event="joining", id=self.path.rsplit("/", 1)[1])
        host, port = self.server.server_address
        self.reply(200, (
            f"v=0\r\no=- 1 1 IN IP4 {host}\r\ns=-\r\nt=0 0\r\nm=application {port} UDP/DTLS/SCTP webrtc-datachannel\r\n"
            f"a=ice-ufrag:{fragment}\r\na=ice-pwd:{secrets.token_hex(12)}\r\n"
        ).encode())

    def log_message(self, *_):
        pass


def ping_answer(packet):
    identity = ";".join(["MCPE", motd, "898", "1.21.130", "3", "20", "13253860892328930865", "level", "Survival", "1"])
    text = identity.encode()
    return b"\x1c" + packet[1:9] + struct.pack(">q", 7) + MAGIC + struct.pack(">H", len(text)) + text


def stun_answer(packet, address):
    """To a Binding request whose USERNAME begins with a fragment of ours."""
    kind, length, cookie = struct.unpack(">HHI", packet[:8])
    if kind != 1 or cookie != COOKIE or length != len(packet) - 20:
        return None
    name, at = None, 20
    while at + 4 <= len(packet):
        attribute, size = struct.unpack(">HH", packet[at:at + 4])
        if attribute == 6:
            name = packet[at + 4:at + 4 + size].decode()
        at += 4 + (size + 3) // 4 * 4
    if name is None or name.split(":")[0] not in fragments:
        return None
    proven.add(address)
    tell(event="proven", address=address[0])
    host, port = struct.unpack(">I", socket.inet_aton(address[0]))[0], address[1]
    mapped = struct.pack(">HHBBHI", 0x20, 8, 0, 1, port ^ (COOKIE >> 16), host ^ COOKIE)
    return struct.pack(">HHI", 0x101, len(mapped), COOKIE) + packet[8:20] + mapped


def datagrams(udp):
    while True:
        packet, address = udp.recvfrom(65536)
        answer = None
        if len(packet) == 33 and packet[0] == 1 and packet[9:25] == MAGIC:
            answer = ping_answer(packet)
        elif len(packet) >= 20 and packet[0] < 4:
            answer = stun_answer(packet, address)
        elif packet and 20 <= packet[0] <= 63 and address in proven:
            answer = packet
        if answer is not None:
            udp.sendto(answer, address)


def both():
    """TCP and UDP of one number that nobody has."""
    while True:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Joining)
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            udp.bind(server.server_address)
            return server, udp
        except OSError:
            server.server_close()
            udp.close()


server, udp = both()
threading.Thread(target=datagrams, args=(udp,), daemon=True).start()
threading.Thread(target=server.serve_forever, daemon=True).start()
tell(event="listening", port=server.server_address[1])
sys.stdin.read()
