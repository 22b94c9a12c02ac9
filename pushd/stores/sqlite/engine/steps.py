"""The later steps of the ladder in schema.py, which says what they are."""

from __future__ import annotations

# What could not be used, for the operator; an id is never given out twice.
SET_ASIDE = (
    """
    CREATE TABLE set_aside (
      id        INTEGER PRIMARY KEY AUTOINCREMENT,
      kind      TEXT NOT NULL,
      at_ms     INTEGER NOT NULL,
      cause     TEXT NOT NULL,
      is_wanted INTEGER NOT NULL DEFAULT 0,
      size      INTEGER NOT NULL,
      body      BLOB NOT NULL
    )
    """,
    "CREATE INDEX set_aside_wanted ON set_aside (id) WHERE is_wanted = 1",
    "CREATE INDEX set_aside_kind ON set_aside (kind, size)",
)
