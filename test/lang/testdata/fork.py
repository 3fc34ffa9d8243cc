"""A child that inherits a handle with an open transaction: it cannot use it, and its end takes nothing from the parent."""
import os
import sqlite3
import sys

extension, uri = sys.argv[1], sys.argv[2]
loader = sqlite3.connect(":memory:")
loader.enable_load_extension(True)
loader.load_extension(extension)

db = sqlite3.connect(uri, uri=True, timeout=30, isolation_level=None)
db.execute("CREATE TABLE IF NOT EXISTS forked(who TEXT)")
db.execute("BEGIN IMMEDIATE")
db.execute("INSERT INTO forked VALUES('parent')")

child = os.fork()
if child == 0:
    try:
        db.execute("COMMIT")
        os._exit(1)
    except sqlite3.Error:
        pass
    own = sqlite3.connect(uri, uri=True, timeout=0.2, isolation_level=None)
    if own.execute("SELECT count(*) FROM forked").fetchone()[0] != 0:
        os._exit(2)
    os._exit(0)
_, status = os.waitpid(child, 0)
if status != 0:
    sys.exit("the child ended with %d" % (status >> 8))
db.execute("COMMIT")

child = os.fork()
if child == 0:
    own = sqlite3.connect(uri, uri=True, timeout=30, isolation_level=None)
    own.execute("INSERT INTO forked VALUES('child')")
    own.close()
    os._exit(0)
_, status = os.waitpid(child, 0)
if status != 0:
    sys.exit("the second child ended with %d" % (status >> 8))
db.execute("INSERT INTO forked VALUES('parent again')")
print("done", db.execute("SELECT group_concat(who) FROM (SELECT who FROM forked ORDER BY rowid)").fetchone()[0])
