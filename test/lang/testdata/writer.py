"""Writes rows through one node and counts what it was told: extension, uri, name, rows."""
import sqlite3
import sys

extension, uri, name, rows = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])

loader = sqlite3.connect(":memory:")
loader.enable_load_extension(True)
loader.load_extension(extension)

db = sqlite3.connect(uri, uri=True, timeout=30, isolation_level=None)
acknowledged = again = unknown = 0
for i in range(rows):
    while True:
        try:
            if i % 3 == 0:
                db.execute("BEGIN IMMEDIATE")
                db.execute("INSERT INTO work(writer, n) VALUES(?, ?)", (name, i))
                db.execute("UPDATE total SET n = n + 1")
                db.execute("COMMIT")
            else:
                db.executescript(
                    "BEGIN; INSERT INTO work(writer, n) VALUES('%s', %d); UPDATE total SET n = n + 1; COMMIT" % (name, i)
                )
            acknowledged += 1
            break
        except sqlite3.OperationalError as e:
            if db.in_transaction:
                db.execute("ROLLBACK")
            if "locked" in str(e):  # SQLITE_BUSY in all its forms: surely not done
                again += 1
                continue
            unknown += 1
            print("unknown", name, i, e, flush=True)
            break
print("done", acknowledged, again, unknown, flush=True)
