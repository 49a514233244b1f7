"""Newer signatures: HTTP message signatures (RFC 9421) by the PyPI package `http-message-signatures`, and object integrity
proofs (FEP-8b32) by `apsig`."""

import datetime
import types

import http_message_signatures
from apsig import ProofSigner
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from http_message_signatures import HTTPMessageSigner, HTTPMessageVerifier, algorithms
from multiformats import multibase, multicodec

from wire import Refused, now_iso

COVERED = ("@method", "@target-uri", "content-digest")
WISH = 'sig1=("@method" "@target-uri" "content-digest");created;keyid;alg="rsa-v1_5-sha256"'


class Keys(http_message_signatures.HTTPSignatureKeyResolver):
    """The one key that a request is about."""

    def __init__(self, private=None, public=None):
        self.private, self.public = private, public

    def resolve_private_key(self, _key_id):
        return self.private

    def resolve_public_key(self, _key_id):
        return self.public


class EdKey:
    """An Ed25519 key and the id under which its actor publishes it, as a Multikey (FEP-521a)."""

    def __init__(self, actor):
        self.actor = actor
        self.id = f"{actor}#ed25519-key"
        self.private = ed25519.Ed25519PrivateKey.generate()

    def method(self):
        raw = self.private.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
        text = multibase.encode(multicodec.wrap("ed25519-pub", raw), "base58btc")
        return {"id": self.id, "type": "Multikey", "controller": self.actor, "publicKeyMultibase": text}


def signed_headers(url, headers, body, key):
    """The headers of a POST, signed by RFC 9421 with an RSA or an Ed25519 key."""
    kind = algorithms.ED25519 if isinstance(key, EdKey) else algorithms.RSA_V1_5_SHA256
    request = types.SimpleNamespace(method="POST", url=url, headers=dict(headers))
    signer = HTTPMessageSigner(signature_algorithm=kind, key_resolver=Keys(private=key.private))
    signer.sign(request, key_id=key.id, label="sig1", covered_component_ids=COVERED, body=body)
    return {str(name): str(value) for name, value in request.headers.items()}


def check_request(url, headers, body, pem, window_s):
    """The signature, the digest and the age of one request."""
    public = serialization.load_pem_public_key(pem.encode())
    request = types.SimpleNamespace(method="POST", url=url, headers=headers)
    verifier = HTTPMessageVerifier(signature_algorithm=algorithms.RSA_V1_5_SHA256, key_resolver=Keys(public=public))
    try:
        verifier.verify(request, max_age=datetime.timedelta(seconds=window_s), require_components=COVERED, body=body)
    except Exception as error:
        raise Refused(401, f"message signature: {type(error).__name__}: {error}") from error


def key_id_of(headers):
    """The key that a `Signature-Input` names."""
    for part in headers.get("signature-input", "").split(";"):
        if part.startswith('keyid="'):
            return part[len('keyid="'):].rstrip('"')
    raise Refused(401, "no keyid in Signature-Input")


def add_proof(document, key):
    """An integrity proof by eddsa-jcs-2022."""
    options = {"type": "DataIntegrityProof", "cryptosuite": "eddsa-jcs-2022", "verificationMethod": key.id,
               "proofPurpose": "assertionMethod", "created": now_iso()}
    return ProofSigner(key.private).sign(document, options)
