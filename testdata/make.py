#!/usr/bin/python3
"""Makes the files below testdata with the sqlite3 module of Debian's Python: a log of five transactions in each page
size and byte order of checksums, and copies with one damage each, named by it. Run it in this directory; it prints what
it made. The files are committed; the script is how they came to be."""
import os, shutil, sqlite3, struct

def log(name, page_size):
    os.makedirs(name, exist_ok=True)
    path = os.path.join(name, "db")
    for suffix in ("", "-wal", "-shm"):
        if os.path.exists(path + suffix):
            os.remove(path + suffix)
    db = sqlite3.connect(path, isolation_level=None)
    db.execute(f"PRAGMA page_size={page_size}")
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA wal_autocheckpoint=0")
    db.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
    for i in range(4):
        db.execute("INSERT INTO t(v) VALUES(?)", ("row-%d" % i,))
    shutil.copyfile(path, path + ".copy")
    shutil.copyfile(path + "-wal", path + "-wal.copy")
    db.close()
    os.replace(path + ".copy", path)
    os.replace(path + "-wal.copy", path + "-wal")
    if os.path.exists(path + "-shm"):
        os.remove(path + "-shm")

def damaged(name, source, change):
    os.makedirs(name, exist_ok=True)
    shutil.copyfile(os.path.join(source, "db"), os.path.join(name, "db"))
    with open(os.path.join(source, "db-wal"), "rb") as f:
        b = bytearray(f.read())
    with open(os.path.join(name, "db-wal"), "wb") as f:
        f.write(change(b))

FRAME = 24 + 512

def last_frame(b):
    return 32 + ((len(b) - 32) // FRAME - 1) * FRAME

def flip(at):
    def change(b):
        b[at(b)] ^= 1
        return b
    return change

def other_version(b):
    """Another version, with the checksum that a header of that version would have."""
    b[4:8] = struct.pack(">I", 3008000)
    order = ">" if b[3] & 1 else "<"
    s1 = s2 = 0
    for x, y in struct.iter_unpack(order + "II", bytes(b[:24])):
        s1 = (s1 + x + s2) & 0xffffffff
        s2 = (s2 + y + s1) & 0xffffffff
    b[24:32] = struct.pack(">II", s1, s2)
    return b

log("five-transactions-512", 512)
log("five-transactions-4096", 4096)
log("five-transactions-65536", 65536)
source = "five-transactions-512"
damaged("torn-last-frame", source, lambda b: b[:-100])
damaged("salt-mismatch", source, flip(lambda b: last_frame(b) + 8))
damaged("bad-checksum", source, flip(lambda b: last_frame(b) + 16))
damaged("bad-page", source, flip(lambda b: len(b) - 1))
damaged("page-zero", source, lambda b: b[:last_frame(b)] + b"\0\0\0\0" + b[last_frame(b) + 4:])
damaged("header-only", source, lambda b: b[:32])
damaged("torn-header", source, lambda b: b[:20])
damaged("bad-header-checksum", source, flip(lambda b: 24))
damaged("unknown-version", source, other_version)
