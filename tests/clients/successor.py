"""A program that an upgrade starts and that never serves: it says the words of the handover up to one, and ends.

    successor.py commit    takes everything, hears that it is its turn, and ends with status 3
    successor.py take      hears that it is to take everything, tells the gateway to stop, and ends
    successor.py serving   takes everything, tells the gateway to stop, says that it serves, and is told to stop itself: it
                           makes the file `stopped`
"""

import json
import os
import signal
import socket
import struct
import sys

HEAD = ">4sBBHII"
WORD, ITEMS = 1, 2

link = socket.socket(fileno=0)


def whole(length, begun=b""):
    while len(begun) < length:
        more = link.recv(length - len(begun))
        if not more:
            sys.exit("the gateway is gone")
        begun += more
    return begun


def say(**word):
    text = json.dumps(word).encode()
    link.sendall(struct.pack(HEAD, b"TSKH", 1, WORD, 0, len(text), 0) + text)


def hear(kind):
    begun, _, _, _ = socket.recv_fds(link, 16, 250)
    _, _, heard, _, text, rest = struct.unpack(HEAD, whole(16, begun))
    assert heard == kind, heard
    said = json.loads(whole(text))
    whole(rest)
    return said


say(word="hello", version="0")
take = hear(WORD)
assert take["word"] == "take", take
if sys.argv[1] == "take":
    os.kill(os.getppid(), signal.SIGTERM)
    sys.exit(1)
items = 0
while items < take["items"]:
    items += len(hear(ITEMS))
say(word="ready")
assert hear(WORD)["word"] == "commit"
if sys.argv[1] == "commit":
    sys.exit(3)


def stopped(_signal, _frame):
    with open("stopped", "w"):
        sys.exit(0)


signal.signal(signal.SIGTERM, stopped)
os.kill(os.getppid(), signal.SIGTERM)
say(word="serving")
signal.alarm(60)
signal.pause()
