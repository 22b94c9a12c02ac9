"""What `drive.c` is told: the clients' handshakes, the publishers' requests, the daemon's setting. Pure."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice

import jwt

SECRET = "a-secret-of-this-benchmark-and-of-nothing-else"
API_KEY = "a-key-of-this-benchmark"
CONFIG = f'[auth]\nmode = "jwt"\njwt_secret = "{SECRET}"\napi_keys = ["{API_KEY}"]\n'
ROLE, SMALL_ROLE = 2, 7
PREFIX = "/api/admin"
KEY = "dGhlIHNhbXBsZSBub25jZQ=="  # RFC 6455 section 1.3; nobody checks the answer here
TEXT = "a notice of a hundred characters, as they are short texts for people in a back office, more or less."
NS_PER_S = 1_000_000_000

# What a browser sends with an upgrade, in its order: about 700 bytes with the token.
BROWSER = """Connection: keep-alive, Upgrade
Pragma: no-cache
Cache-Control: no-cache
User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/131.0.0.0 Safari/537.36
Upgrade: websocket
Origin: http://127.0.0.1:{port}
Sec-WebSocket-Version: 13
Accept-Encoding: gzip, deflate, br, zstd
Accept-Language: en-GB,en;q=0.9,de;q=0.8
Cookie: session=0123456789abcdef0123456789abcdef
Sec-WebSocket-Key: {key}
Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits"""


def browser_headers(host: str) -> list[str]:
    """What a browser sends beside what every handshake must have."""
    needed = ("Connection:", "Upgrade:", "Sec-WebSocket-Version:", "Sec-WebSocket-Key:")
    lines = BROWSER.replace("127.0.0.1:{port}", host).splitlines()
    return [line for line in lines if not line.startswith(needed)]


def tokens(users: Iterable[int], role: int = ROLE) -> list[str]:
    """A signed token for each user, good for a day."""
    now = int(time.time())
    claims = {"type": role, "iat": now, "exp": now + 86_400}
    return [
        jwt.encode({"uid": user_id, "username": f"user{user_id}", "jti": f"{user_id:016x}", **claims}, SECRET, "HS256")
        for user_id in users
    ]


def upgrade(port: int, token: str, *, is_acking: bool = True) -> bytes:
    """The handshake of a browser, which can give its token in the URL only."""
    query = f"token={token}&ack=1" if is_acking else f"token={token}"
    head = f"GET /ws?{query} HTTP/1.1\nHost: 127.0.0.1:{port}\n{BROWSER.format(port=port, key=KEY)}\n\n"
    return head.replace("\n", "\r\n").encode()


def post(port: int, path: str, body: bytes) -> bytes:
    """A whole POST of a backend that has an API key."""
    head = (
        f"POST {PREFIX}{path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nX-API-Key: {API_KEY}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def get(port: int, path: str) -> bytes:
    """A whole GET of a backend that has an API key."""
    return f"GET {PREFIX}{path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nX-API-Key: {API_KEY}\r\n\r\n".encode()


@dataclass(frozen=True)
class Notice:
    """A notice to publish. `number` is known by its content again; `due_ns` after the start, 0 = as soon as possible.

    `users`: of target "custom"; any other goes to whomever it means.
    """

    number: int
    target: str = "custom"
    users: Sequence[int] = ()
    priority: str = "normal"
    due_ns: int = 0

    def body(self) -> dict[str, object]:
        """What a publisher posts."""
        fields: dict[str, object] = {"type": "bench", "content": f"#{self.number} {TEXT}", "target": self.target}
        if self.users:
            fields["user_ids"] = list(self.users)
        if self.target == "role":
            fields["roles"] = [SMALL_ROLE]
        return {**fields, "priority": self.priority}


def _encoded(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def singles(port: int, notices: Iterable[Notice]) -> list[tuple[int, bytes]]:
    """One POST per notice: when it is due, and its bytes."""
    return [(notice.due_ns, post(port, "/system/notice", _encoded(notice.body()))) for notice in notices]


def batches(port: int, notices: Sequence[Notice], size: int) -> list[tuple[int, bytes]]:
    """`size` notices per POST."""
    parts = [notices[start : start + size] for start in range(0, len(notices), size)]
    bodies = [{"notices": [notice.body() for notice in part]} for part in parts]
    return [(0, post(port, "/system/notices", _encoded(body))) for body in bodies]


def one_each(total: int, users: Collection[int]) -> list[Notice]:
    """Notices to one user in turn."""
    ordered = sorted(users)
    return [Notice(number, users=(ordered[number % len(ordered)],)) for number in range(total)]


# ---- files of drive.c


def handshakes_file(handshakes: Iterable[bytes]) -> bytes:
    """Each behind its length."""
    return b"".join(struct.pack("<I", len(one)) + one for one in handshakes)


def requests_file(requests: Iterable[tuple[int, bytes]]) -> bytes:
    """Each behind when it is due, and its length."""
    return b"".join(struct.pack("<QI", due_ns, len(one)) + one for due_ns, one in requests)


# ---- a back office's day in seconds

PER_S = 200
URGENT_EVERY_MS = 25
AFTER_BROADCAST_MS = (3, 6, 10, 15, 20, 30, 40, 60)


def mixture(seconds: int, members: int) -> list[Notice]:
    """200 notices a second: one to everybody (each fifth time: to who is online), two to a role, 48 urgent ones to one
    user each, 8 of them close behind the broadcast, the others to one to ten users, of every other priority."""
    plan: list[tuple[int, str, Sequence[int], str]] = []
    picks = _picks(members)
    for second in range(seconds):
        at_ms = second * 1000
        plan.append((at_ms + 500, "online" if second % 5 == 4 else "all", (), ("low", "normal")[second % 2]))
        plan += [(at_ms + 250, "role", (), "normal"), (at_ms + 750, "role", (), "high")]
        urgent = [*range(0, 1000, URGENT_EVERY_MS), *(500 + after for after in AFTER_BROADCAST_MS)]
        plan += [(at_ms + ms, "custom", tuple(islice(picks, 1)), "urgent") for ms in urgent]
        rest = PER_S - 3 - len(urgent)
        plan += [
            (at_ms + 1000 * index // rest, "custom", _some(picks, index), ("low", "normal", "high")[index % 3])
            for index in range(rest)
        ]
    plan.sort(key=lambda one: one[0])
    return [
        Notice(number, target, users, priority, due_ns=max(1, at_ms * 1_000_000))
        for number, (at_ms, target, users, priority) in enumerate(plan)
    ]


def _picks(members: int) -> Iterator[int]:
    """Users without end, far from each other, none twice in a row."""
    return (1 + number * 7919 % members for number in count())


def _some(picks: Iterator[int], index: int) -> Sequence[int]:
    """Half of the notices go to one user, the others to up to ten."""
    return tuple(islice(picks, 1 if index % 2 else 1 + index // 2 % 10))
