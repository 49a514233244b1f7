#!/usr/bin/env python3
"""Reads a delivery notice with Python's email package and with flufl.bounce, and says as JSON what they see in it."""

import email.policy
import json
import sys
from email.parser import BytesParser

from flufl.bounce import all_failures


def seen(text):
    message = BytesParser(policy=email.policy.default).parsebytes(text)
    parts = list(message.iter_parts())
    blocks = [dict(block.items()) for part in parts if part.get_content_type() == "message/delivery-status"
              for block in part.get_payload()]
    defects = [str(defect) for part in message.walk() for defect in part.defects]
    temporary, permanent = all_failures(email.message_from_bytes(text))
    return {
        "type": message.get_content_type(),
        "report": message.get_param("report-type"),
        "auto": message["Auto-Submitted"],
        "to": message["To"],
        "parts": [part.get_content_type() for part in parts],
        "words": parts[0].get_content(),
        "header": parts[-1].get_payload(decode=True).decode("utf-8", "replace") if parts[-1].get_payload() else "",
        "message": blocks[0] if blocks else {},
        "recipients": blocks[1:],
        "defects": defects,
        "temporary": sorted(address.decode() for address in temporary),
        "permanent": sorted(address.decode() for address in permanent),
    }


if __name__ == "__main__":
    print(json.dumps(seen(sys.stdin.buffer.read())))
