#!/usr/bin/env python3
"""Pings a Minecraft server with `mcstatus` and prints what it says as one JSON line.

mc_status.py HOST PORT [--ping] asks as Java Edition does, with --legacy as it did before 1.7, with --bedrock as the Bedrock
Edition does (RakNet's unconnected ping, UDP).
"""

import json
import sys

from mcstatus import BedrockServer, JavaServer, LegacyServer

host, port = sys.argv[1], int(sys.argv[2])
kinds = {"--legacy": LegacyServer, "--bedrock": BedrockServer}
kind = next((kinds[word] for word in sys.argv if word in kinds), JavaServer)
server = kind(host, port, timeout=15)
status = server.status()
ping = server.ping() if "--ping" in sys.argv else None
print(json.dumps({
    "motd": status.motd.to_plain(), "online": status.players.online, "max": status.players.max,
    "version": status.version.name, "protocol": status.version.protocol, "latency_ms": status.latency, "ping_ms": ping,
}))
