"""JSON-LD contexts from local copies only; any other address is refused.

`apsig` loads contexts from the net by default. PyLD carries copies of the public ones; the two
below are gone from the net or an alias, and a signature's options use four of their terms.
"""

from pyld import jsonld
from pyld.documentloader.frozen import BUNDLED_CONTEXTS, FrozenDocumentLoader

SIGNATURE_OPTIONS = "https://w3id.org/identity/v1"
APSIG_OPTIONS = "https://w3c-ccg.github.io/security-vocab/contexts/security-v1.jsonld"

# What `identity/v1` says about the terms that stand in a signature's options.
_IDENTITY_V1 = {
    "@context": {
        "id": "@id",
        "type": "@type",
        "dc": "http://purl.org/dc/terms/",
        "sec": "https://w3id.org/security#",
        "xsd": "http://www.w3.org/2001/XMLSchema#",
        "created": {"@id": "dc:created", "@type": "xsd:dateTime"},
        "creator": {"@id": "dc:creator", "@type": "@id"},
        "expires": {"@id": "sec:expiration", "@type": "xsd:dateTime"},
        "signature": {"@id": "sec:signature", "@type": "@id"},
    }
}


def install():
    """Makes PyLD, and so `apsig`, use the local copies."""
    documents = dict(BUNDLED_CONTEXTS)
    documents[APSIG_OPTIONS] = BUNDLED_CONTEXTS["https://w3id.org/security/v1"]
    documents[SIGNATURE_OPTIONS] = _IDENTITY_V1
    jsonld.set_document_loader(FrozenDocumentLoader(documents=documents))
