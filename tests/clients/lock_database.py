#!/usr/bin/env python3
"""Holds the write lock of an SQLite database until a line comes on standard input; prints `{}` when it has it."""

import sqlite3
import sys

database = sqlite3.connect(sys.argv[1], timeout=60, isolation_level=None)
database.execute("BEGIN IMMEDIATE")
print("{}", flush=True)
sys.stdin.readline()
database.execute("ROLLBACK")
