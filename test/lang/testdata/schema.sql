-- Everything that SQLite stores in an unusual way, in one schema. Read by the sqlite3 command line.
CREATE TABLE customer(
  id INTEGER PRIMARY KEY,
  name TEXT NOT NULL COLLATE NOCASE,
  born TEXT CHECK(born IS NULL OR born LIKE '____-__-__'),
  joined TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP,
  initial TEXT GENERATED ALWAYS AS (upper(substr(name, 1, 1))) STORED,
  greeting TEXT AS ('Hello ' || name) VIRTUAL
);
CREATE UNIQUE INDEX customer_name ON customer(name);
CREATE INDEX customer_born ON customer(born) WHERE born IS NOT NULL;
CREATE INDEX customer_year ON customer(CAST(substr(born, 1, 4) AS INT));

CREATE TABLE setting(
  scope TEXT, key TEXT, value BLOB,
  PRIMARY KEY(scope, key)
) WITHOUT ROWID;

CREATE TABLE orders(
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  customer INT NOT NULL REFERENCES customer(id) ON DELETE CASCADE,
  amount REAL NOT NULL,
  token INT NOT NULL DEFAULT (random()),
  noise BLOB DEFAULT (randomblob(16))
) STRICT;

CREATE TABLE journal(at TEXT DEFAULT CURRENT_TIMESTAMP, what TEXT, luck INT);
CREATE TRIGGER orders_insert AFTER INSERT ON orders BEGIN
  INSERT INTO journal(what, luck) VALUES('order ' || new.id, random());
  INSERT INTO setting VALUES('customer', new.customer, new.amount)
    ON CONFLICT(scope, key) DO UPDATE SET value = value + excluded.value;
END;
CREATE TRIGGER orders_delete BEFORE DELETE ON orders BEGIN
  INSERT INTO journal(what, luck) VALUES('gone ' || old.id, abs(random()) % 100);
END;

CREATE VIEW spending AS
  SELECT c.name, count(o.id) AS orders, total(o.amount) AS amount
  FROM customer c LEFT JOIN orders o ON o.customer = c.id GROUP BY c.id;
CREATE TRIGGER spending_insert INSTEAD OF INSERT ON spending BEGIN
  INSERT INTO customer(name) VALUES(new.name);
END;

CREATE VIRTUAL TABLE note USING fts5(title, body, tokenize = 'porter unicode61');
CREATE VIRTUAL TABLE place USING rtree(id, minx, maxx, miny, maxy, +label TEXT);

WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n WHERE i < 200)
  INSERT INTO customer(name, born) SELECT printf('customer %03d', i), date('1970-01-01', i || ' days') FROM n;
INSERT INTO spending(name) VALUES('through the view');
WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n WHERE i < 1000)
  INSERT INTO orders(customer, amount) SELECT 1 + i % 200, i * 1.25 FROM n;
DELETE FROM orders WHERE id % 10 = 0;
WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n WHERE i < 300)
  INSERT INTO note SELECT 'note ' || i, 'running runners ran ' || hex(randomblob(20)) FROM n;
INSERT INTO note(note) VALUES('optimize');
WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n WHERE i < 500)
  INSERT INTO place SELECT i, i, i + 2, -i, 1 - i, 'place ' || i FROM n;
BEGIN;
UPDATE customer SET name = name || '!' WHERE id < 50;
SAVEPOINT a;
DELETE FROM customer;
ROLLBACK TO a;
RELEASE a;
COMMIT;
ALTER TABLE customer ADD COLUMN mail TEXT;
ALTER TABLE customer RENAME COLUMN mail TO email;
ANALYZE;
PRAGMA user_version = 42;
