#!/usr/bin/env python3
"""A web server at home, made with aiohttp, and a visitor of its websocket.

web_home.py serve            serves on a free port of 127.0.0.1 and prints it as a JSON line:
    POST /sum        the SHA-256 of the body, and how it was framed
    GET  /drip       a line every 100 ms, ten times, without a length
    GET  /cut        begins an answer of 1 MB and breaks the connection
    GET  /ws         a websocket that repeats every message
    anything else    the request as JSON
web_home.py say URL --address HOST:PORT --ca FILE --words A B C
    opens the websocket as if DNS had led to the address, says each word, and prints the answers as a JSON line
"""

import argparse
import asyncio
import hashlib
import json
import socket
import ssl

import aiohttp
from aiohttp import web
from aiohttp.abc import AbstractResolver


async def sum_up(request):
    digest, size, pieces = hashlib.sha256(), 0, 0
    async for piece in request.content.iter_any():
        digest.update(piece)
        size += len(piece)
        pieces += 1
    return web.json_response({
        "sha256": digest.hexdigest(), "size": size, "pieces": pieces,
        "length": request.headers.get("Content-Length"), "coding": request.headers.get("Transfer-Encoding"),
    })


async def drip(request):
    answer = web.StreamResponse()
    await answer.prepare(request)
    for number in range(10):
        await answer.write(f"drop {number}\n".encode())
        await asyncio.sleep(0.1)
    return answer


async def cut(request):
    answer = web.StreamResponse(headers={"Content-Length": "1000000"})
    await answer.prepare(request)
    await answer.write(b"x" * 1000)
    request.transport.abort()
    return answer


async def repeat(request):
    talk = web.WebSocketResponse()
    await talk.prepare(request)
    async for message in talk:
        if message.type == aiohttp.WSMsgType.TEXT:
            await talk.send_str(message.data)
        elif message.type == aiohttp.WSMsgType.BINARY:
            await talk.send_bytes(message.data)
    return talk


async def tell(request):
    return web.json_response({
        "method": request.method, "path": request.raw_path, "peer": request.remote,
        "headers": [[name, value] for name, value in request.headers.items()],
    })


async def serve():
    app = web.Application(client_max_size=1 << 30)
    app.add_routes([
        web.post("/sum", sum_up), web.get("/drip", drip), web.get("/cut", cut), web.get("/ws", repeat),
        web.route("*", "/{tail:.*}", tell),
    ])
    listening = socket.create_server(("127.0.0.1", 0))
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.SockSite(runner, listening).start()
    print(json.dumps({"port": listening.getsockname()[1]}), flush=True)
    await asyncio.Event().wait()


class Fixed(AbstractResolver):
    """Every name leads to one address."""

    def __init__(self, address):
        host, port = address.rsplit(":", 1)
        self.host, self.port = host, int(port)

    async def resolve(self, host, port=0, family=socket.AF_INET):
        return [{"hostname": host, "host": self.host, "port": self.port, "family": socket.AF_INET, "proto": 0, "flags": 0}]

    async def close(self):
        pass


async def say(options):
    trust = ssl.create_default_context(cafile=options.ca)
    connector = aiohttp.TCPConnector(resolver=Fixed(options.address), ssl=trust)
    heard = []
    async with aiohttp.ClientSession(connector=connector) as session:
        async with session.ws_connect(options.url) as talk:
            for word in options.words:
                await talk.send_str(word)
                heard.append(await talk.receive_str(timeout=30))
            large = bytes(range(256)) * 4000
            await talk.send_bytes(large)
            whole = await talk.receive_bytes(timeout=30) == large
    print(json.dumps({"heard": heard, "large": whole}))


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = options.add_subparsers(dest="command", required=True)
    commands.add_parser("serve")
    saying = commands.add_parser("say")
    saying.add_argument("url")
    saying.add_argument("--address", required=True)
    saying.add_argument("--ca", required=True)
    saying.add_argument("--words", nargs="+", default=[])
    options = options.parse_args()
    asyncio.run(serve() if options.command == "serve" else say(options))


main()
