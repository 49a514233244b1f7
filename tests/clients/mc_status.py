#!/usr/bin/env python3
"""Pings a Minecraft server with `mcstatus` and prints what it says as one JSON line."""

import json
import sys

from mcstatus import JavaServer

host, port = sys.argv[1], int(sys.argv[2])
server = JavaServer(host, port, timeout=15)
status = server.status()
ping = server.ping() if "--ping" in sys.argv else None
print(json.dumps({
    "motd": status.motd.to_plain(), "online": status.players.online, "max": status.players.max,
    "version": status.version.name, "protocol": status.version.protocol, "latency_ms": status.latency, "ping_ms": ping,
}))
