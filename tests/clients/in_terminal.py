"""Runs a program in a terminal of its own: in_terminal.py COLUMNS ROWS PROGRAM ARGUMENT...

What the program writes goes to standard output as it is; what comes on standard input is typed. Ends as it ends."""

import fcntl
import os
import pty
import select
import struct
import sys
import termios

columns, rows = int(sys.argv[1]), int(sys.argv[2])
child, terminal = pty.fork()
if child == 0:
    fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    os.execvp(sys.argv[3], sys.argv[3:])

watched = [terminal, 0]
while True:
    ready, _, _ = select.select(watched, [], [])
    if terminal in ready:
        try:
            written = os.read(terminal, 65536)
        except OSError:  # Linux says so when the last program has closed it.
            written = b""
        if not written:
            break
        os.write(1, written)
    if 0 in ready:
        typed = os.read(0, 65536)
        if typed:
            os.write(terminal, typed)
        else:
            watched.remove(0)

_, status = os.waitpid(child, 0)
sys.exit(os.waitstatus_to_exitcode(status) & 0xFF)
