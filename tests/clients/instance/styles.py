"""The documents of four families of fediverse software, as each writes them on the wire."""

import itertools
import re
import uuid

import modern
from wire import AS2, PUBLIC, Key, Refused, check_document_signature, encode, host_of, now_iso, sign_document

_FOLLOW_RELAY = re.compile(r"follow-relay/(\w+)")


def _actor(base, path, kind, name, key, inbox=None, context=None, **more):
    actor = f"{base}{path}"
    return {
        "@context": context or [AS2, "https://w3id.org/security/v1"],
        "id": actor, "type": kind, "preferredUsername": name, "name": name, "url": actor,
        "inbox": inbox or f"{actor}/inbox", "outbox": f"{actor}/outbox",
        "followers": f"{actor}/followers", "following": f"{actor}/following",
        "endpoints": {"sharedInbox": f"{base}/inbox"},
        "publicKey": {"id": key.id, "owner": actor, "publicKeyPem": key.public_pem},
        **more,
    }


class Style:
    """What the families share: one actor that subscribes, one person who writes, notes by number."""

    software = ("", "")
    author_path = "/users/alice"
    author_name = "alice"
    key_fragment = "#main-key"
    inbox_limit = 1024 * 1024
    window_s = 3600
    signs_documents = True
    message_signatures = False
    # The name of the algorithm in the Signature header of a POST; None: as the library gives it.
    algorithm = None

    def __init__(self, base):
        self.base = base
        self.subscriber = base + self.subscriber_path
        self.author = base + self.author_path
        self.subscriber_key = Key(self.subscriber + self.key_fragment)
        self.author_key = Key(self.author + self.key_fragment)
        self.documents = {}
        self.numbers = itertools.count(1)
        # Two instances of one test, or one after a restart, never make the same id.
        self.run = uuid.uuid4().hex[:12]
        self.add(_actor(base, self.author_path, "Person", self.author_name, self.author_key))

    def add(self, document):
        self.documents[document["id"]] = document

    def accounts(self):
        """WebFinger: account name to actor id."""
        return {self.author_name: self.author, self.subscriber_name: self.subscriber}

    # -- subscribing -------------------------------------------------------------------------------

    def follow(self, relay):
        """A Follow of everything public, as admins' "add a relay" buttons send it."""
        return {"@context": AS2, "id": self.new_follow_id(), "type": "Follow",
                "actor": self.subscriber, "object": PUBLIC}

    def undo(self, follow):
        return {"@context": AS2, "id": f"{self.base}/{uuid.uuid4()}", "type": "Undo", "actor": self.subscriber,
                "object": {name: follow[name] for name in ("id", "type", "actor", "object")}}

    def match_answer(self, activity, follow):
        """Whether an Accept or a Reject speaks of our Follow."""
        answered = activity.get("object")
        return (answered.get("id") if isinstance(answered, dict) else answered) == follow["id"]

    # -- publishing --------------------------------------------------------------------------------

    def note_id(self, number):
        return f"{self.author}/statuses/{self.run}{number}"

    def note(self, identity, text, to=None, cc=None, tags=()):
        hashtags = [{"type": "Hashtag", "href": f"{self.base}/tags/{tag.lower()}", "name": f"#{tag}"} for tag in tags]
        return {"id": identity, "type": "Note", "attributedTo": self.author, "content": f"<p>{text}</p>",
                "published": now_iso(), "to": to if to is not None else [PUBLIC],
                "cc": cc if cc is not None else [f"{self.author}/followers"], "sensitive": False, "tag": hashtags}

    def publish(self, kind, text, target=None, to=None, cc=None, tags=()):
        """An activity of the author in the bytes that go out, and the id of its object."""
        identity = target or self.note_id(next(self.numbers))
        note = self.note(identity, text, to, cc, tags)
        envelope = {"@context": [AS2, "https://w3id.org/security/v1", {"sensitive": "as:sensitive", "Hashtag": "as:Hashtag"}],
                    "actor": self.author, "to": note["to"], "cc": note["cc"]}
        if kind == "create":
            activity = {"id": f"{identity}/activity", "type": "Create", "published": note["published"], "object": note}
            self.add({"@context": AS2, **note})
        elif kind == "update":
            note["updated"] = now_iso()
            activity = {"id": f"{identity}#updates/{uuid.uuid4().hex}", "type": "Update", "object": note}
            self.add({"@context": AS2, **note})
        elif kind == "delete":
            activity = {"id": f"{identity}#delete", "type": "Delete", "object": {"id": identity, "type": "Tombstone"}}
            self.documents.pop(identity, None)
        elif kind == "announce":
            activity = {"id": f"{self.author}/statuses/{self.run}{next(self.numbers)}/activity", "type": "Announce",
                        "published": now_iso(), "object": identity}
        else:
            raise ValueError(f"publish: unknown kind {kind!r}")
        body, key = self.finish({**envelope, **activity})
        return body, identity, key

    def finish(self, activity):
        """The bytes of an activity, signed by its author, and the key for the request."""
        return encode(sign_document(activity, self.author_key)), self.author_key

    # -- receiving ---------------------------------------------------------------------------------

    def required_headers(self, names):
        """What the signature of a POST must cover."""
        if "digest" not in names:
            raise Refused(401, "the signature does not cover digest")
        if "date" not in names:
            raise Refused(401, "the signature does not cover date")

    def check_signature_header(self, raw):
        """The form of the Signature header."""

    def check_relay_actor(self, actor, _client):
        """What the software demands of the actor that signed."""

    def check_answer(self, actor, relay_inbox):
        """Whether the actor of an Accept or a Reject is the relay that was asked."""

    def check_forward(self, activity, key_of):
        """An activity that its actor did not sign itself: the LD signature must be that actor's."""
        creator = (activity.get("signature") or {}).get("creator")
        if not creator:
            raise Refused(202, "neither signed by its actor nor LD-signed")
        owner, pem, _ = key_of(creator)
        if owner != activity.get("actor"):
            raise Refused(202, f"the LD signature is of {owner}, the activity of {activity.get('actor')}")
        check_document_signature(activity, pem)


class Mastodon(Style):
    software = ("mastodon", "4.5.4")
    subscriber_path = "/actor"

    def __init__(self, base):
        self.subscriber_name = host_of(base).partition(":")[0]
        super().__init__(base)
        self.add(_actor(base, "/actor", "Application", self.subscriber_name, self.subscriber_key,
                        manuallyApprovesFollowers=True))

    def new_follow_id(self):
        return f"{self.base}/{uuid.uuid4()}"

    def check_relay_actor(self, actor, client):
        # ProcessAccountService#check_webfinger! runs on the first contact with an actor.
        name, host = actor.get("preferredUsername"), host_of(actor["id"])
        answer = client.webfinger(actor["id"].split("/", 3)[0] + "//" + host, f"{name}@{host}")
        if answer.get("subject") != f"acct:{name}@{host}":
            raise Refused(401, f"WebFinger of {actor['id']}: subject {answer.get('subject')!r}")
        own = [link.get("href") for link in answer.get("links", []) if link.get("rel") == "self"]
        if own != [actor["id"]]:
            raise Refused(401, f"WebFinger of {actor['id']}: self link {own}")


class Misskey(Style):
    software = ("misskey", "2025.12.2")
    subscriber_path = "/users/9relayactor"
    subscriber_name = "relay.actor"
    author_path = "/users/9alice"
    inbox_limit = 64 * 1024
    window_s = 300

    def __init__(self, base):
        super().__init__(base)
        self.add(_actor(base, self.subscriber_path, "Application", self.subscriber_name, self.subscriber_key))

    def new_follow_id(self):
        return f"{self.base}/activities/follow-relay/{uuid.uuid4().hex[:10]}"

    def undo(self, follow):
        return {"@context": [AS2, "https://w3id.org/security/v1"], "id": f"{follow['id']}/undo", "type": "Undo",
                "actor": self.subscriber, "object": {**follow}, "published": now_iso()}

    def match_answer(self, activity, follow):
        answered = activity.get("object")
        if not isinstance(answered, dict):
            raise Refused(202, "the object must be the embedded Follow: an id of type activities is not resolved")
        if answered.get("type") != "Follow" or answered.get("actor") != self.subscriber:
            raise Refused(202, "the embedded Follow is not ours")
        found = _FOLLOW_RELAY.search(str(answered.get("id")))
        return bool(found) and found.group(1) == _FOLLOW_RELAY.search(follow["id"]).group(1)

    def note_id(self, number):
        return f"{self.base}/notes/{self.run}{number}"

    def required_headers(self, names):
        for name in ("(request-target)", "host", "date", "digest"):
            if name not in names:
                raise Refused(401, f"the signature does not cover {name}")

    def check_relay_actor(self, actor, _client):
        hosts = {host_of(actor["id"]), host_of(actor["inbox"]), host_of(actor["publicKey"]["id"])}
        if len(hosts) != 1:
            raise Refused(202, f"validateActor: hosts differ: {sorted(hosts)}")
        if not re.fullmatch(r"\w([\w.-]*\w)?", actor.get("preferredUsername", "")):
            raise Refused(202, "validateActor: preferredUsername")

    def check_forward(self, activity, key_of):
        super().check_forward(activity, key_of)
        if host_of(activity["id"]) != host_of(activity["actor"]):
            raise Refused(202, "host of the id and of the actor differ")


class Iceshrimp(Misskey):
    """Iceshrimp.NET as shipped: it subscribes as Misskey does, and believes no LD signature (`AcceptLdSignatures`) but under
    a Delete."""

    software = ("Iceshrimp.NET", "2026.1")
    inbox_limit = 1024 * 1024
    algorithm = "hs2019"

    def publish(self, kind, text, target=None, to=None, cc=None, tags=()):
        if kind == "announce":
            raise ValueError("it sends relays no boosts")
        return super().publish(kind, text, target, to, cc, tags)

    def check_signature_header(self, raw):
        # Its parser splits at commas and takes no spaces there.
        names = [field.partition("=")[0] for field in raw.split(",")]
        if any(name != name.strip() for name in names):
            raise Refused(401, "a space after a comma in the Signature header")
        if "algorithm" not in names:
            raise Refused(401, "the Signature header names no algorithm")

    def required_headers(self, names):
        for name in ("(request-target)", "digest", "host"):
            if name not in names:
                raise Refused(401, f"the signature does not cover {name}")
        if "date" not in names and "(created)" not in names:
            raise Refused(401, "the signature covers neither date nor (created)")

    def check_answer(self, actor, relay_inbox):
        if actor["inbox"] != relay_inbox:
            raise Refused(202, f"the inbox of the relay is {actor['inbox']}, not {relay_inbox}")

    def check_forward(self, activity, key_of):
        if activity["type"] != "Delete":
            raise Refused(403, "LD signatures are not accepted here")
        super().check_forward(activity, key_of)


class LitePub(Style):
    software = ("akkoma", "3.16.0")
    subscriber_path = "/relay"
    subscriber_name = "relay"
    author_path = "/users/bob"
    author_name = "bob"
    signs_documents = False

    def __init__(self, base):
        super().__init__(base)
        # Not valid JSON-LD on purpose: receivers must not run a processor on it.
        self.context = [AS2, f"{base}/schemas/litepub-0.1.jsonld", {"@language": "und"}]
        self.add(_actor(base, "/relay", "Application", "relay", self.subscriber_key, context=self.context,
                        invisible=True))

    def new_follow_id(self):
        return f"{self.base}/activities/{uuid.uuid4()}"

    def follow(self, relay):
        return {"@context": self.context, "id": self.new_follow_id(), "type": "Follow", "actor": self.subscriber,
                "object": relay, "to": [relay], "cc": [], "state": "pending", "published": now_iso()}

    def undo(self, follow):
        return {"@context": self.context, "id": self.new_follow_id(), "type": "Undo", "actor": self.subscriber,
                "object": {**follow, "state": "cancelled"}, "to": follow["to"], "cc": [], "published": now_iso()}

    def accept(self, follow):
        return {"@context": self.context, "id": self.new_follow_id(), "type": "Accept", "actor": self.subscriber,
                "object": follow, "to": [follow["actor"]], "cc": []}

    def note_id(self, number):
        return f"{self.base}/objects/{self.run}{number}"

    def publish(self, kind, text, target=None, to=None, cc=None, tags=()):
        if kind != "create":
            raise ValueError(f"a LitePub relay publishes nothing for {kind!r}")
        identity = target or self.note_id(next(self.numbers))
        note = {"@context": self.context, **self.note(identity, text, to, cc, tags)}
        self.add(note)
        announce = {"@context": self.context, "id": self.new_follow_id(), "type": "Announce",
                    "actor": self.subscriber, "object": identity, "to": [f"{self.subscriber}/followers", self.author],
                    "cc": [], "published": now_iso()}
        return encode(announce), identity, self.subscriber_key

    def required_headers(self, names):
        if "digest" not in names:
            raise Refused(400, "the signature does not cover digest")

    def check_forward(self, activity, _key_of):
        raise Refused(400, "Invalid HTTP Signature")


class Modern(Style):
    """Takes and makes only signatures by RFC 9421, and proves its documents by FEP-8b32."""

    software = ("newcomer", "1.0")
    subscriber_path = "/actor"
    subscriber_name = "instance"
    message_signatures = True

    def __init__(self, base):
        super().__init__(base)
        self.ed_key = modern.EdKey(self.author)
        self.documents[self.author]["assertionMethod"] = [self.ed_key.method()]
        self.add(_actor(base, "/actor", "Application", self.subscriber_name, self.subscriber_key))

    def new_follow_id(self):
        return f"{self.base}/follows/{uuid.uuid4()}"

    def finish(self, activity):
        return encode(modern.add_proof(activity, self.ed_key)), self.ed_key


STYLES = {"mastodon": Mastodon, "misskey": Misskey, "iceshrimp": Iceshrimp, "litepub": LitePub, "modern": Modern}
