#!/usr/bin/env python3
"""A small ActivityPub instance for tests: subscribes to a relay, publishes, and checks what it receives.

It shares nothing with the program under test: signatures are made and verified by `apsig`.
On start it prints one JSON line with its addresses; `/control/...` commands it and tells what came in.

    POST /control/subscribe   {"relay": URL}             the URL an admin pastes (inbox, or actor for litepub)
    POST /control/unsubscribe {}
    POST /control/publish     {"kind": "create", "text": "...", "count": 1, "target": id, "to": [...], "cc": [...],
                               "tags": [...]}
    POST /control/draft       {"kind": "create", "text": "..."}       the same, signed and not sent
    POST /control/raw         {"url", "body_base64", "key": "author"|"subscriber"|null, "headers": {...}, ...}
    POST /control/behave      {"inbox": "normal"|"hang"|503}
    GET  /control/state       subscription and follow-back
    GET  /control/received    every request to an inbox, ?since=N for the later ones
    GET  /control/fetched     objects fetched because of an Announce
"""

import argparse
import base64
import hashlib
import http.client
import json
import ssl
import sys
import threading
import urllib.parse
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import contexts
import modern
import wire
from styles import STYLES
from wire import ACTIVITY_JSON, PUBLIC, Client, Refused, host_of

MAX_RECORDS = 100_000


class Instance:
    """One instance: its documents, its subscription, and what it received."""

    def __init__(self, style, base, client, secure_mode=False):
        self.style = STYLES[style](base)
        self.base = base
        self.client = client
        self.secure_mode = secure_mode
        self.changed = threading.Condition()
        self.received = []
        self.fetched = []
        self.keys = {}
        self.relay_inbox = None
        self.relay_actor = None
        self.follow = None
        self.state = "idle"
        self.follow_back = "none"
        self.inbox_mode = "normal"
        self.released = threading.Event()

    # -- commands ----------------------------------------------------------------------------------

    def subscribe(self, relay):
        if relay.endswith("/inbox"):
            self.relay_inbox, self.relay_actor = relay, None
        else:
            self.relay_actor = relay
            self.relay_inbox = self.client.fetch(relay)["inbox"]
        self.follow = self.style.follow(relay)
        self.state = "pending"
        return self._send(self.follow, self.style.subscriber_key)

    def unsubscribe(self):
        answer = self._send(self.style.undo(self.follow), self.style.subscriber_key)
        self.state = "idle"
        return answer

    def publish(self, kind="create", text="hello", count=1, target=None, to=None, cc=None, parallel=4, tags=()):
        def one(number):
            words = text if count == 1 else f"{text} {number}"
            body, identity, key = self.style.publish(kind, words, target, to, cc, tags)
            try:
                status, _, answer = self._post(self.relay_inbox, body, key)
            except (OSError, http.client.HTTPException) as error:
                # Nobody answered: the relay may have it or not.
                status, answer = None, f"{type(error).__name__}: {error}".encode()
            return {"object": identity, "id": json.loads(body)["id"], "sha256": hashlib.sha256(body).hexdigest(),
                    "size_bytes": len(body), "status": status, "answer": answer.decode("utf-8", "replace")}

        with ThreadPoolExecutor(max_workers=max(1, min(parallel, count))) as pool:
            return list(pool.map(one, range(count)))

    def draft(self, kind="create", text="hello", target=None):
        """An activity of the author as `publish` would send it, for somebody else to carry."""
        body, identity, _ = self.style.publish(kind, text, target)
        return {"object": identity, "id": json.loads(body)["id"], "sha256": hashlib.sha256(body).hexdigest(),
                "body_base64": base64.b64encode(body).decode()}

    def raw(self, url, body_base64, key=None, headers=None, signed_headers=None, date=None,
            content_type=ACTIVITY_JSON):
        """Any bytes, signed or not: for requests that break a rule."""
        keys = {"author": self.style.author_key, "subscriber": self.style.subscriber_key, None: None}
        status, answer_headers, answer = self.client.post(
            url, base64.b64decode(body_base64), keys[key], content_type, signed_headers, date, headers)
        return {"status": status, "headers": answer_headers, "answer": answer.decode("utf-8", "replace")}

    def behave(self, inbox):
        self.inbox_mode = inbox
        if inbox != "hang":
            self.released.set()
            self.released = threading.Event()
        return {"inbox": inbox}

    def _post(self, url, body, key):
        if not self.style.message_signatures:
            return self.client.post(url, body, key, algorithm=self.style.algorithm)
        headers = modern.signed_headers(url, {"Content-Type": ACTIVITY_JSON}, body, key)
        return self.client.request("POST", url, headers, body)

    def _send(self, activity, key):
        status, _, answer = self._post(self.relay_inbox, wire.encode(activity), key)
        return {"id": activity["id"], "status": status, "answer": answer.decode("utf-8", "replace")}

    # -- the inbox ---------------------------------------------------------------------------------

    def receive(self, path, headers, body):
        """Checks one POST as the imitated software does and records it, whatever the outcome."""
        record = {"path": path, "size_bytes": len(body), "sha256": hashlib.sha256(body).hexdigest(),
                  "body_base64": base64.b64encode(body).decode(), "headers": headers, "signer": None,
                  "ld_signed": False, "type": None, "actor": None, "id": None, "object": None}
        try:
            after = self._check(path, headers, body, record)
            record["outcome"], record["status"] = "accepted", 202
        except Refused as error:
            after, record["outcome"], record["status"] = None, f"refused: {error}", error.status
        except Exception as error:  # a fault of this program or a peer beyond its rules: never silent
            after, record["outcome"], record["status"] = None, f"failed: {type(error).__name__}: {error}", 500
        with self.changed:
            record["n"] = len(self.received)
            if len(self.received) < MAX_RECORDS:
                self.received.append(record)
            self.changed.notify_all()
        return record["status"], record["outcome"], after

    def _check(self, path, headers, body, record):
        style = self.style
        if len(body) > style.inbox_limit:
            raise Refused(413, "the body is larger than the inbox takes")
        if not wire.is_activity_type(headers.get("content-type", "")):
            raise Refused(415, f"content type {headers.get('content-type')!r}")
        if headers.get("host", "").lower() != host_of(self.base):
            raise Refused(401, f"Host is {headers.get('host')!r}")
        key_id, check = self._signature(path, headers, body)
        signer, pem, actor = self._key_of(key_id)
        record["signer"] = signer
        try:
            check(pem)
        except Refused:
            self.keys.pop(key_id, None)
            signer, pem, actor = self._key_of(key_id)
            check(pem)

        try:
            activity = json.loads(body)
        except ValueError as error:
            raise Refused(400, f"not JSON: {error}") from error
        for name in ("id", "type", "actor"):
            record[name] = activity.get(name)
        answered = activity.get("object")
        record["object"] = answered.get("id") if isinstance(answered, dict) else answered
        if activity.get("actor") != signer:
            style.check_forward(activity, self._key_of)
            record["ld_signed"] = True
        elif host_of(activity["id"]) != host_of(signer):
            raise Refused(202, "host of the id and of the signer differ")
        return self._process(activity, signer, actor)

    def _signature(self, path, headers, body):
        """The key that signed, by its id, and how to check that with its PEM."""
        window_s = self.style.window_s
        if self.style.message_signatures:
            return modern.key_id_of(headers), lambda pem: modern.check_request(
                self.base + path, headers, body, pem, window_s)
        if not headers.get("digest", "").startswith("SHA-256="):
            raise Refused(401, "no Digest with SHA-256")
        self.style.check_signature_header(headers.get("signature", ""))
        parts = wire.signature_parts(headers)
        self.style.required_headers(parts["headers"].lower().split())
        return parts["keyId"], lambda pem: wire.check_http_signature("POST", path, headers, body, pem, window_s)

    def _process(self, activity, signer, actor):
        kind = activity["type"]
        if kind in ("Accept", "Reject"):
            if self.follow is None or not self.style.match_answer(activity, self.follow):
                raise Refused(202, f"{kind} of a Follow that is not ours")
            self.style.check_answer(actor, self.relay_inbox)
            self.state = "accepted" if kind == "Accept" else "rejected"
        elif kind == "Follow" and activity.get("object") == self.style.subscriber and hasattr(self.style, "accept"):
            return lambda: self._accept_back(activity, actor)
        elif kind == "Create":
            note = activity.get("object") or {}
            if PUBLIC not in [*_list(note.get("to")), *_list(note.get("cc"))]:
                raise Refused(202, "a Create that is not public")
            if activity.get("actor") != signer and actor["inbox"] != self.relay_inbox:
                raise Refused(202, f"not through a relay we know: {actor['inbox']} is not {self.relay_inbox}")
        elif kind == "Announce" and signer != self.style.subscriber:
            return lambda: self._fetch_announced(activity)
        return None

    def _accept_back(self, follow, actor):
        status, _, _ = self.client.post(actor["inbox"], wire.encode(self.style.accept(follow)),
                                        self.style.subscriber_key)
        self.follow_back = "accepted" if status in (200, 202) else f"answered {status}"

    def _fetch_announced(self, activity):
        url = activity["object"] if isinstance(activity["object"], str) else activity["object"].get("id")
        entry = {"object": url, "announce": activity["id"], "actor": activity["actor"]}
        try:
            document = self.client.fetch(url, self.style.subscriber_key)
            entry["document"], entry["outcome"] = document, "fetched"
        except Exception as error:
            entry["outcome"] = f"{type(error).__name__}: {error}"
        with self.changed:
            self.fetched.append(entry)
            self.changed.notify_all()

    def _key_of(self, key_id):
        """Owner, PEM and actor of a key; the actor is fetched once, and once more if a signature fails."""
        if key_id in self.keys:
            return self.keys[key_id]
        url = key_id.split("#")[0]
        actor = self.client.fetch(url, self.style.subscriber_key)
        key = actor.get("publicKey") or {}
        if key.get("id") != key_id or key.get("owner") != actor.get("id") or actor.get("id") != url:
            raise Refused(401, f"{key_id} is not the key of {actor.get('id')}")
        if actor.get("type") in ("Application", "Service"):
            self.style.check_relay_actor(actor, self.client)
        self.keys[key_id] = (actor["id"], key["publicKeyPem"], actor)
        return self.keys[key_id]

    # -- documents ---------------------------------------------------------------------------------

    def document(self, path, headers):
        """Status, content type and body of a GET."""
        parts = urllib.parse.urlsplit(path)
        if parts.path == "/.well-known/webfinger":
            return self._webfinger(urllib.parse.parse_qs(parts.query).get("resource", [""])[0])
        if parts.path == "/.well-known/nodeinfo":
            return 200, "application/json", {"links": [
                {"rel": f"http://nodeinfo.diaspora.software/ns/schema/{v}", "href": f"{self.base}/nodeinfo/{v}"}
                for v in ("2.0", "2.1")]}
        if parts.path in ("/nodeinfo/2.0", "/nodeinfo/2.1"):
            name, version = self.style.software
            return 200, "application/json", {
                "version": parts.path[-3:], "software": {"name": name, "version": version},
                "protocols": ["activitypub"], "services": {"inbound": [], "outbound": []},
                "openRegistrations": False, "usage": {"users": {"total": 1}}, "metadata": {}}
        if parts.path == "/api/v1/instance" and self.style.software[0] == "mastodon":
            return 200, "application/json", {"contact_account": {"acct": self.style.author_name, "url": self.style.author}}
        if parts.path == "/schemas/litepub-0.1.jsonld":
            return 200, "application/ld+json", {"@context": {"Emoji": "toot:Emoji", "capabilities": 1}}
        found = self.style.documents.get(self.base + parts.path)
        if found is None:
            return 404, "application/json", {"error": "no such document"}
        if self.secure_mode and found["id"] != self.style.subscriber:
            try:
                _, pem, _ = self._key_of(wire.signature_parts(headers)["keyId"])
                wire.check_http_signature("GET", path, headers, b"", pem, self.style.window_s)
            except Refused as error:
                return 401, "application/json", {"error": str(error)}
        return 200, ACTIVITY_JSON + "; charset=utf-8", found

    def _webfinger(self, resource):
        account = resource.removeprefix("acct:")
        name, _, host = account.rpartition("@")
        actor = self.style.accounts().get(name)
        if host != host_of(self.base) or actor is None:
            return 404, "application/json", {"error": "no such account"}
        return 200, "application/jrd+json", {"subject": f"acct:{account}", "links": [
            {"rel": "self", "type": ACTIVITY_JSON, "href": actor}]}

    def status(self):
        return {"subscription": self.state, "follow_id": self.follow and self.follow["id"],
                "follow_back": self.follow_back, "relay_inbox": self.relay_inbox,
                "received": len(self.received), "fetched": len(self.fetched)}


def _list(value):
    return value if isinstance(value, list) else [] if value is None else [value]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 60
    server_version = "instance"
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass

    def do_GET(self):
        instance, parts = self.server.instance, urllib.parse.urlsplit(self.path)
        if parts.path == "/control/state":
            return self._answer(200, "application/json", instance.status())
        if parts.path == "/control/received":
            since = int(urllib.parse.parse_qs(parts.query).get("since", ["0"])[0])
            return self._answer(200, "application/json", instance.received[since:])
        if parts.path == "/control/fetched":
            return self._answer(200, "application/json", instance.fetched)
        return self._answer(*instance.document(self.path, self._headers()))

    def do_POST(self):
        instance = self.server.instance
        length = self.headers.get("Content-Length", "")
        if not length.isdigit():
            return self._answer(411, "application/json", {"error": "no Content-Length"})
        if int(length) > 64 * 1024 * 1024:
            self.close_connection = True
            return self._answer(413, "application/json", {"error": "too large"})
        body = self.rfile.read(int(length))
        if self.path.startswith("/control/"):
            return self._control(self.path.removeprefix("/control/"), body)
        if not urllib.parse.urlsplit(self.path).path.endswith("/inbox"):
            return self._answer(404, "application/json", {"error": "no such inbox"})
        if instance.inbox_mode == "hang":
            instance.released.wait()
        elif instance.inbox_mode != "normal":
            return self._answer(int(instance.inbox_mode), "application/json", {"error": "as told"})
        status, outcome, after = instance.receive(self.path, self._headers(), body)
        wish = {"Accept-Signature": modern.WISH} if status == 401 and instance.style.message_signatures else {}
        self._answer(status, "application/json", {"outcome": outcome}, wish)
        if after is not None:
            threading.Thread(target=after, daemon=True).start()

    def _control(self, command, body):
        instance = self.server.instance
        commands = {"subscribe": instance.subscribe, "unsubscribe": instance.unsubscribe,
                    "publish": instance.publish, "draft": instance.draft, "raw": instance.raw, "behave": instance.behave}
        if command not in commands:
            return self._answer(404, "application/json", {"error": f"no command {command!r}"})
        try:
            answer = commands[command](**json.loads(body or b"{}"))
        except Exception as error:
            return self._answer(500, "application/json", {"error": f"{type(error).__name__}: {error}"})
        return self._answer(200, "application/json", answer)

    def _headers(self):
        return {name.lower(): value for name, value in self.headers.items()}

    def _answer(self, status, content_type, document, more=None):
        body = wire.encode(document)
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        for name, value in (more or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address, tls):
        super().__init__(address, Handler)
        self.tls = tls

    def get_request(self):
        connection, peer = super().get_request()
        if self.tls:
            # The handshake happens at the first read, in the connection's own thread.
            connection = self.tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        return connection, peer

    def handle_error(self, request, client_address):
        pass


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--style", choices=sorted(STYLES), required=True)
    options.add_argument("--bind", default="127.0.0.1")
    options.add_argument("--port", type=int, default=0)
    options.add_argument("--host", help="public name, with a port if it has one; default: the bound address")
    options.add_argument("--certificate", help="PEM file with certificate and key: serve HTTPS")
    options.add_argument("--ca-file", help="PEM file of the CA to trust")
    options.add_argument("--resolve", action="append", default=[], metavar="HOST[:PORT]=ADDRESS:PORT",
                         help="connect to ADDRESS:PORT for URLs with that host")
    options.add_argument("--secure-mode", action="store_true", help="documents only for signed requests")
    chosen = options.parse_args()

    contexts.install()
    tls = None
    if chosen.certificate:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(chosen.certificate)
    resolve = {}
    for entry in chosen.resolve:
        name, _, address = entry.partition("=")
        host, _, port = address.rpartition(":")
        resolve[name] = (host, int(port))
    server = Server((chosen.bind, chosen.port), tls)
    scheme, port = "https" if tls else "http", server.server_address[1]
    host = chosen.host or f"{chosen.bind}:{port}"
    server.instance = Instance(chosen.style, f"{scheme}://{host}", Client(resolve, chosen.ca_file),
                               chosen.secure_mode)
    if tls:
        # The test commands it in plain HTTP, at a port of its own.
        control = Server((chosen.bind, 0), None)
        control.instance = server.instance
        threading.Thread(target=control.serve_forever, daemon=True).start()
        port = control.server_address[1]
    print(json.dumps({"style": chosen.style, "base": f"{scheme}://{host}", "host": host,
                      "control": f"http://{chosen.bind}:{port}/control"}), flush=True)
    # The test holds our standard input: when it ends, however it ends, so do we.
    threading.Thread(target=lambda: (sys.stdin.read(), server.shutdown()), daemon=True).start()
    server.serve_forever()


if __name__ == "__main__":
    main()
