"""Online status: who is connected, since when, how often and how long in all. Durations are milliseconds."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import msgspec
import orjson

from pushd.batched import batched
from pushd.model import Arrival, UserId
from pushd.records import OnlineStatus
from pushd.stores.sqlite.engine.schema import is_id
from pushd.stores.sqlite.engine.statements import CHUNK_ROWS, Statements, decoded
from pushd.stores.sqlite.engine.thread import SqliteThread
from pushd.user_ids import INTEGERS, UserIds

# :rows are arrivals as arrays in the order of model.Arrival. An arrival that is written again or late changes nothing.
CONNECTED = """
INSERT INTO admin_user_online_status (
  user_id, username, connection_id, client_ip, user_agent, online_time, last_seen, created_at, updated_at,
  is_online, total_online_count
)
SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]'),
       json_extract(value, '$[3]'), json_extract(value, '$[4]'), json_extract(value, '$[5]'),
       json_extract(value, '$[5]'), json_extract(value, '$[5]'), json_extract(value, '$[5]'), 1, 1
  FROM json_each(CAST(:rows AS TEXT))
 WHERE true
    ON CONFLICT (user_id) DO UPDATE
   SET username = excluded.username, connection_id = excluded.connection_id, client_ip = excluded.client_ip,
       user_agent = excluded.user_agent, online_time = excluded.online_time, last_seen = excluded.last_seen,
       updated_at = excluded.updated_at, is_online = 1, total_online_count = total_online_count + 1
 WHERE online_time < excluded.online_time
    OR (online_time = excluded.online_time AND connection_id <> excluded.connection_id)
"""

# Goes on with a FROM that gives `at_ms`, and a WHERE.
_GO_OFFLINE = """
UPDATE admin_user_online_status
   SET is_online = 0, offline_time = max(at_ms, ifnull(online_time, 0)), last_seen = max(at_ms, ifnull(online_time, 0)),
       updated_at = at_ms, online_duration = max(0, at_ms - ifnull(online_time, at_ms)),
       total_online_time = total_online_time + max(0, at_ms - ifnull(online_time, at_ms))
"""

# :rows are [user_id, at_ms]. A departure from before the last arrival is late news and changes nothing.
DISCONNECTED = f"""
{_GO_OFFLINE}
  FROM (SELECT json_extract(value, '$[0]') AS departed_id, min(json_extract(value, '$[1]')) AS at_ms
          FROM json_each(CAST(:rows AS TEXT))
         GROUP BY departed_id)
 WHERE user_id = departed_id AND is_online = 1 AND ifnull(online_time, 0) <= at_ms
"""  # noqa: S608 - constants only

GHOSTS = """
SELECT CAST(json_group_array(user_id) AS BLOB)
  FROM (SELECT user_id FROM admin_user_online_status WHERE is_online = 1 AND {is_id} LIMIT :limit)
"""

RESET = f"""
{_GO_OFFLINE}
  FROM (SELECT min(:at_ms, ifnull((SELECT at_ms FROM alive), :at_ms)) AS at_ms)
 WHERE user_id IN (SELECT value FROM json_each(CAST(:user_ids AS TEXT)))
"""  # noqa: S608 - constants only

ALIVE = "INSERT INTO alive (id, at_ms) VALUES (1, :at_ms) ON CONFLICT (id) DO UPDATE SET at_ms = excluded.at_ms"

_TEXTS = ("username", "connection_id", "client_ip", "user_agent")
_NUMBERS = {
    "last_seen_ms": "last_seen",
    "online_ms": "online_time",
    "offline_ms": "offline_time",
    "online_duration_ms": "online_duration",
    "total_online_count": "total_online_count",
    "total_online_ms": "total_online_time",
}
# Casts, for another program can write anything into any column.
_FIELDS = (
    "'user_id', user_id, 'is_online', iif(is_online, json('true'), json('false'))",
    *(f"'{name}', CAST({name} AS TEXT)" for name in _TEXTS),
    *(f"'{name}', CAST(ifnull({column}, 0) AS INTEGER)" for name, column in _NUMBERS.items()),
)

STATUSES = f"""
SELECT CAST(json_group_array(json_object({", ".join(_FIELDS)})) AS BLOB)
  FROM json_each(CAST(:user_ids AS TEXT)) AS wanted
 CROSS JOIN admin_user_online_status ON user_id = wanted.value
"""  # noqa: S608 - constants only

_statuses = msgspec.json.Decoder(list[OnlineStatus])


class SqlitePresence:
    """ports.PresenceStore on table `admin_user_online_status`."""

    def __init__(self, thread: SqliteThread, ids: UserIds = INTEGERS) -> None:
        self._ghosts = GHOSTS.format(is_id=is_id(ids, "user_id"))
        self._statements = Statements(thread, "presence")

    async def connected(self, arrivals: Sequence[Arrival]) -> None:
        """Note that these users' first connection came."""
        for chunk in batched(arrivals, CHUNK_ROWS):
            rows = orjson.dumps([msgspec.structs.astuple(arrival) for arrival in chunk])
            await self._statements.change("connected", CONNECTED, rows=rows)

    async def disconnected(self, departures: Sequence[tuple[UserId, int]]) -> None:
        """Note that these users' last connection went."""
        for chunk in batched(departures, CHUNK_ROWS):
            await self._statements.change("disconnected", DISCONNECTED, rows=orjson.dumps(chunk))

    async def statuses(self, user_ids: Collection[UserId]) -> dict[UserId, OnlineStatus]:
        """What is stored of these users."""
        found: dict[UserId, OnlineStatus] = {}
        for chunk in batched(user_ids, CHUNK_ROWS):
            document = await self._statements.document("statuses", STATUSES, user_ids=orjson.dumps(chunk))
            found.update((status.user_id, status) for status in decoded(_statuses, document or b"[]"))
        return found

    async def alive(self, at_ms: int) -> None:
        """Note that this node lives."""
        await self._statements.change("alive", ALIVE, at_ms=at_ms)

    async def reset(self, at_ms: int) -> list[UserId]:
        """Mark everybody as offline since the node last lived; who was marked as online."""
        closed: list[UserId] = []
        while ghosts := orjson.loads(await self._statements.document("reset", self._ghosts, limit=CHUNK_ROWS) or b"[]"):
            await self._statements.change("reset", RESET, at_ms=at_ms, user_ids=orjson.dumps(ghosts))
            closed += ghosts
        return closed
