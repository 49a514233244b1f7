"""The instance against itself: what one sends, another must check by the rules of its style.

Run: python -m unittest discover -s tests/clients/instance
"""

import base64
import email.utils
import json
import subprocess
import sys
import time
import unittest
import urllib.request
from pathlib import Path

PROGRAM = Path(__file__).with_name("instance.py")


class Running:
    def __init__(self, style, *more):
        self.process = subprocess.Popen([sys.executable, str(PROGRAM), "--style", style, *more],
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.about = json.loads(self.process.stdout.readline())
        self.base = self.about["base"]

    def control(self, command, **arguments):
        data = json.dumps(arguments).encode()
        with urllib.request.urlopen(f"{self.about['control']}/{command}", data=data, timeout=30) as answer:
            return json.load(answer)

    def read(self, what):
        with urllib.request.urlopen(f"{self.about['control']}/{what}", timeout=30) as answer:
            return json.load(answer)

    def last(self):
        return self.read("received")[-1]

    def close(self):
        self.process.stdin.close()
        self.process.wait(timeout=10)
        self.process.stdout.close()


class InstanceTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.mastodon, cls.misskey, cls.litepub, cls.relay = (
            Running("mastodon"), Running("misskey"), Running("litepub"), Running("mastodon"))

    @classmethod
    def tearDownClass(cls):
        for running in (cls.mastodon, cls.misskey, cls.litepub, cls.relay):
            running.close()

    def published(self, author, kind="create"):
        """The bytes that `author` posts, caught by the fourth instance in the relay's place."""
        author.control("subscribe", relay=f"{self.relay.base}/inbox")
        author.control("publish", kind=kind, text="こんにちは")
        caught = self.relay.last()
        self.assertEqual(caught["outcome"], "accepted")
        return base64.b64decode(caught["body_base64"])

    def forward(self, body, to, **more):
        """Posts `body` signed by the fourth instance's own actor, as a relay forwards it."""
        arguments = {"url": f"{to.base}/inbox", "body_base64": base64.b64encode(body).decode(), "key": "subscriber"}
        answer = self.relay.control("raw", **{**arguments, **more})
        return answer["status"], to.last()["outcome"]

    def trust_relay(self, subscriber):
        subscriber.control("subscribe", relay=f"{self.relay.base}/actor/inbox")

    def test_a_direct_post_is_accepted_between_all_styles(self):
        for author in (self.mastodon, self.misskey):
            self.published(author)

    def test_a_forward_with_an_ld_signature_is_accepted_by_mastodon_and_misskey(self):
        for author, reader in ((self.misskey, self.mastodon), (self.mastodon, self.misskey)):
            body = self.published(author)
            self.trust_relay(reader)
            self.assertEqual(self.forward(body, reader), (202, "accepted"))
            self.assertTrue(reader.last()["ld_signed"])

    def test_updates_and_deletes_are_ld_signed_too(self):
        for kind in ("update", "delete"):
            body = self.published(self.misskey, kind)
            self.trust_relay(self.mastodon)
            self.assertEqual(self.forward(body, self.mastodon), (202, "accepted"))

    def test_one_changed_byte_breaks_the_ld_signature(self):
        body = self.published(self.misskey).replace("こんにちは".encode(), "こんばんは".encode())
        self.trust_relay(self.mastodon)
        status, outcome = self.forward(body, self.mastodon)
        self.assertEqual(status, 202)
        self.assertIn("LD signature", outcome)

    def test_a_relay_whose_inbox_is_not_the_pasted_one_is_not_believed(self):
        body = self.published(self.misskey)
        self.mastodon.control("subscribe", relay=f"{self.relay.base}/inbox")
        self.assertIn("not through a relay we know", self.forward(body, self.mastodon)[1])

    def test_litepub_refuses_a_forward_with_400(self):
        body = self.published(self.misskey)
        self.assertEqual(self.forward(body, self.litepub)[0], 400)

    def test_misskey_refuses_what_is_signed_over_too_little_or_too_old(self):
        body = self.published(self.mastodon)
        self.trust_relay(self.misskey)
        self.assertIn("does not cover host", self.forward(body, self.misskey, signed_headers=["date", "digest"])[1])
        old = email.utils.formatdate(time.time() - 400, usegmt=True)
        status, outcome = self.forward(body, self.misskey, date=old)
        self.assertEqual(status, 401)
        self.assertIn("too far", outcome)

    def test_mastodon_takes_a_signature_that_names_no_host(self):
        body = self.published(self.misskey)
        self.trust_relay(self.mastodon)
        arguments = {"signed_headers": ["date", "digest"]}
        self.assertEqual(self.forward(body, self.mastodon, **arguments), (202, "accepted"))

    def test_iceshrimp_signs_with_hs2019_and_believes_a_forwarded_delete_alone(self):
        iceshrimp = Running("iceshrimp")
        try:
            iceshrimp.control("subscribe", relay=f"{self.relay.base}/inbox")
            iceshrimp.control("publish", kind="create", text="hello")
            caught = self.relay.last()
            self.assertEqual(caught["outcome"], "accepted")
            self.assertIn('algorithm="hs2019"', caught["headers"]["signature"])
            self.trust_relay(iceshrimp)
            status, outcome = self.forward(self.published(self.misskey), iceshrimp)
            self.assertEqual(status, 403, outcome)
            body = self.published(self.misskey, "delete")
            self.assertEqual(self.forward(body, iceshrimp), (202, "accepted"))
            arguments = {"signed_headers": ["(request-target)", "host", "digest"]}
            self.assertIn("neither date", self.forward(body, iceshrimp, **arguments)[1])
        finally:
            iceshrimp.close()

    def test_wrong_digest_wrong_host_and_no_signature_are_refused(self):
        body = self.published(self.misskey)
        wrong = "SHA-256=" + base64.b64encode(bytes(32)).decode()
        self.assertEqual(self.forward(body, self.mastodon, headers={"Digest": wrong})[0], 401)
        self.assertIn("Host is", self.forward(body, self.mastodon, headers={"Host": "elsewhere.example"})[1])
        self.assertEqual(self.forward(body, self.mastodon, key=None)[0], 401)

    def test_misskey_takes_at_most_64_kib(self):
        self.assertEqual(self.forward(b" " * (64 * 1024 + 1), self.misskey)[0], 413)

    def test_litepub_announces_and_the_reader_fetches_the_object(self):
        self.litepub.control("subscribe", relay=f"{self.relay.base}/inbox")
        sent = self.litepub.control("publish", text="announced")[0]
        self.assertEqual(self.relay.last()["outcome"], "accepted")
        deadline = time.monotonic() + 10
        while not (found := [f for f in self.relay.read("fetched") if f["object"] == sent["object"]]):
            self.assertLess(time.monotonic(), deadline)
        self.assertEqual(found[0]["outcome"], "fetched")
        self.assertEqual(found[0]["document"]["content"], "<p>announced</p>")

    def test_secure_mode_serves_signed_requests_only(self):
        closed = Running("mastodon", "--secure-mode")
        try:
            self.published(closed)
            with self.assertRaises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(f"{closed.base}/users/alice", timeout=10)
            self.assertEqual(refused.exception.code, 401)
            refused.exception.close()
        finally:
            closed.close()


if __name__ == "__main__":
    unittest.main()
