"""HTTP as fediverse servers speak it: signed requests out, strictly checked requests in.

Signatures are made and verified by the PyPI package `apsig`; this file decides what must be signed,
how old it may be, and whose key counts, as the imitated software does.
"""

import email.utils
import http.client
import json
import re
import ssl
import time
import urllib.parse

from apsig import LDSignature
from apsig.draft import Signer, Verifier
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

PUBLIC = "https://www.w3.org/ns/activitystreams#Public"
AS2 = "https://www.w3.org/ns/activitystreams"
ACTIVITY_JSON = "application/activity+json"
LD_JSON = f'application/ld+json; profile="{AS2}"'
MAX_DOCUMENT = 1024 * 1024
TIMEOUT_S = 10


class Refused(Exception):
    """The other side broke a rule; `status` is what the imitated software answers."""

    def __init__(self, status, reason):
        super().__init__(reason)
        self.status = status


class Key:
    """An RSA key and the id under which its actor publishes it."""

    def __init__(self, key_id):
        self.id = key_id
        self.private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.public_pem = self.private.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        ).decode("ascii")


class Client:
    """Plain HTTP/1.1 requests, one connection each, to the address that `resolve` gives a name."""

    def __init__(self, resolve=None, ca_file=None):
        self.resolve = resolve or {}
        self.tls = ssl.create_default_context(cafile=ca_file) if ca_file else ssl.create_default_context()

    def request(self, method, url, headers, body=None):
        parts = urllib.parse.urlsplit(url)
        default = 443 if parts.scheme == "https" else 80
        address, port = self.resolve.get(parts.netloc, (parts.hostname, parts.port or default))
        if parts.scheme == "https":
            connection = _NamedTls(parts.hostname, address, port, self.tls)
        else:
            connection = http.client.HTTPConnection(address, port, timeout=TIMEOUT_S)
        try:
            path = parts.path or "/"
            connection.putrequest(method, path + (f"?{parts.query}" if parts.query else ""),
                                  skip_host=True, skip_accept_encoding=True)
            names = {name.lower() for name in headers}
            if "host" not in names:
                connection.putheader("Host", parts.netloc)
            for name, value in headers.items():
                connection.putheader(name, value)
            if body is not None and "content-length" not in names:
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read(MAX_DOCUMENT + 1)
        finally:
            connection.close()

    def post(self, url, body, key, content_type=ACTIVITY_JSON, signed_headers=None, date=None, extra=None,
             algorithm=None):
        """POSTs `body` with an HTTP signature over (request-target), host, date and digest."""
        headers = {"Content-Type": content_type, "Date": date or email.utils.formatdate(usegmt=True)}
        headers.update(extra or {})
        if key is not None:
            signed = Signer(headers=headers, private_key=key.private, method="POST", url=url, key_id=key.id,
                            body=body, signed_headers=signed_headers or
                            ["(request-target)", "host", "date", "digest", "content-type"]).sign()
            # Servers send the signature in one header; apsig offers it in two.
            signed.pop("Authorization")
            headers = signed
            if algorithm:
                # It is not part of what is signed.
                name = next(name for name in headers if name.lower() == "signature")
                headers[name] = re.sub('algorithm="[^"]*"', f'algorithm="{algorithm}"', headers[name])
        return self.request("POST", url, headers, body)

    def fetch(self, url, key=None):
        """GETs an ActivityPub document; signed when `key` is given. Raises `Refused` when it is none."""
        headers = {"Accept": f"{ACTIVITY_JSON}, {LD_JSON}", "Date": email.utils.formatdate(usegmt=True)}
        if key is not None:
            headers = Signer(headers=headers, private_key=key.private, method="GET", url=url, key_id=key.id).sign()
            headers.pop("Authorization")
        status, answer, body = self.request("GET", url, headers)
        if status != 200:
            raise Refused(401, f"GET {url} answered {status}")
        kind = {name.lower(): value for name, value in answer.items()}.get("content-type", "")
        if not is_activity_type(kind):
            raise Refused(401, f"GET {url} answered with content type {kind!r}")
        if len(body) > MAX_DOCUMENT:
            raise Refused(401, f"GET {url} answered more than {MAX_DOCUMENT} bytes")
        return json.loads(body)

    def webfinger(self, origin, account):
        resource = urllib.parse.quote(f"acct:{account}", safe="")
        url = f"{origin}/.well-known/webfinger?resource={resource}"
        status, _, body = self.request("GET", url, {"Accept": "application/jrd+json, application/json"})
        if status != 200:
            raise Refused(401, f"GET {url} answered {status}")
        return json.loads(body)


class _NamedTls(http.client.HTTPSConnection):
    """TLS to `address` with the name that the URL gave in SNI and in the certificate check."""

    def __init__(self, name, address, port, context):
        super().__init__(address, port, timeout=TIMEOUT_S, context=context)
        self._name, self._tls = name, context

    def connect(self):
        http.client.HTTPConnection.connect(self)
        self.sock = self._tls.wrap_socket(self.sock, server_hostname=self._name)


def is_activity_type(content_type):
    """The two types under which ActivityPub documents travel; anything else may be a user's upload."""
    kind = content_type.replace(" ", "").lower()
    return kind.split(";")[0] == ACTIVITY_JSON or (
        kind.startswith("application/ld+json;") and f'profile="{AS2}"' in kind)


def signature_parts(headers):
    """The fields of a `Signature` header."""
    raw = headers.get("signature")
    if not raw:
        raise Refused(401, "no Signature header")
    parts = {}
    for item in raw.split(","):
        name, equals, value = item.partition("=")
        if not equals:
            raise Refused(401, "a Signature field without '='")
        parts[name.strip()] = value.strip().strip('"')
    for name in ("keyId", "algorithm", "headers", "signature"):
        if name not in parts:
            raise Refused(401, f"the Signature header lacks {name}")
    return parts


def check_http_signature(method, path, headers, body, pem, window_s):
    """The signature, the digest and the age of one request."""
    # With an RSA key `hs2019` means RSA-SHA256, with two more things to sign; servers take it, apsig knows the older name only.
    parts = signature_parts(headers)
    if parts["algorithm"] == "hs2019":
        headers = {**headers, "signature": headers["signature"].replace('"hs2019"', '"rsa-sha256"'),
                   **{f"({name})": parts[name] for name in ("created", "expires") if name in parts}}
    try:
        Verifier(public_pem=pem, method=method, url=f"http://{headers.get('host', '')}{path}", headers=headers,
                 body=body, clock_skew=window_s).verify(raise_on_fail=True)
    except Exception as error:  # apsig raises several types, KeyError among them
        raise Refused(401, f"HTTP signature: {type(error).__name__}: {error}") from error


def sign_document(document, key):
    """An LD signature in the form that Mastodon gives it: no context inside the signature."""
    signed = LDSignature().sign(document, key.id, key.private)
    signature = {"type": "RsaSignature2017", **signed["signature"]}
    signature.pop("@context")
    return {**document, "signature": signature}


def check_document_signature(document, pem):
    for word in ("@graph", "@included", "@reverse"):
        if word in json.dumps(document):
            raise Refused(202, f"LD signature: {word} in the document")
    try:
        LDSignature().verify(document, serialization.load_pem_public_key(pem.encode()), raise_on_fail=True)
    except Exception as error:
        raise Refused(202, f"LD signature: {type(error).__name__}: {error}") from error


def origin_of(url):
    parts = urllib.parse.urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


def host_of(url):
    return urllib.parse.urlsplit(url).netloc.lower()


def now_iso():
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def encode(document):
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
