"""The shop's database: forty books and ten customers; `python make_database.py OUT --seed N`."""

import os
import signal
import sqlite3
import sys

if fifo := os.environ.get("TEST_HOLD_DATABASE"):
    # The test that kills this process waits for this end to be opened.
    os.open(fifo, os.O_WRONLY)
    signal.pause()

connection = sqlite3.connect(sys.argv[1])
connection.execute("CREATE TABLE books(id INTEGER PRIMARY KEY, title TEXT, genre TEXT, price REAL)")
connection.execute("CREATE TABLE customers(id INTEGER PRIMARY KEY, name TEXT, email TEXT)")
genres = ["crime", "poetry", "travel", "cooking", "history"]
for number in range(40):
    row = (number, f"Salt Road {number}", genres[number % 5], 5 + (number * 7 % 36) + 0.5)
    connection.execute("INSERT INTO books VALUES (?, ?, ?, ?)", row)
for number in range(10):
    connection.execute(
        "INSERT INTO customers VALUES (?, ?, ?)", (number, f"Guest {number}", f"guest{number}@example.org")
    )
connection.commit()
connection.close()
