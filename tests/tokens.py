"""Tokens of every kind: good ones, and what forgers try."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

SECRET = "a-secret-of-at-least-32-bytes-for-tests"
API_KEY = "backend-key-0123456789"
JWT: dict[str, Any] = {"mode": "jwt", "jwt_secret": SECRET, "api_keys": [API_KEY], "leeway_s": 0}

_key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
PRIVATE_PEM = _key.private_bytes(
    serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
).decode()
PUBLIC_PEM = (
    _key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode()
)


def token(user_id: Any = 7, role: Any = 0, *, ttl_s: float = 86_400, key: str = SECRET, algorithm: str = "HS256",
          without: str = "", **claims: Any) -> str:  # fmt: skip
    """A signed token."""
    payload = {"uid": user_id, "type": role, "exp": time.time() + ttl_s, **claims}
    payload.pop(without, None)
    return jwt.encode(payload, key, algorithm)


def _part(value: Any) -> str:
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(text).rstrip(b"=").decode()


def unsigned(header: Any, payload: Any = None, signature: bytes = b"") -> str:
    """A token put together by hand."""
    claims = {"uid": 1, "type": 1, "exp": time.time() + 600} if payload is None else payload
    return f"{_part(header)}.{_part(claims)}.{_part(signature) if signature else ''}"


def hs256_with(key: bytes) -> str:
    """Signed by hand, with a key that libraries refuse to sign with."""
    head = f"{_part({'alg': 'HS256', 'typ': 'JWT'})}.{_part({'uid': 1, 'type': 1, 'exp': time.time() + 600})}"
    return f"{head}.{_part(hmac.new(key, head.encode(), hashlib.sha256).digest())}"


def forged() -> dict[str, str]:
    """What must never be taken for an administrator's token."""
    good = token(1, 1)
    head, payload, signature = good.split(".")
    return {
        "wrong signature": token(1, 1, key="another-secret-of-at-least-32-bytes!"),
        "no signature": f"{head}.{payload}.",
        "signature of another": f"{head}.{_part({'uid': 2, 'type': 1, 'exp': time.time() + 600})}.{signature}",
        "alg none": unsigned({"alg": "none", "typ": "JWT"}),
        "alg None": unsigned({"alg": "None"}),
        "alg missing": unsigned({"typ": "JWT"}),
        "alg a list": unsigned({"alg": ["HS256"]}),
        "alg an object": unsigned({"alg": {"a": 1}}),
        "alg not allowed": jwt.encode({"uid": 1, "type": 1, "exp": time.time() + 600}, SECRET * 2, "HS512"),
        "RS256 by a key of one's own": jwt.encode(
            {"uid": 1, "type": 1, "exp": time.time() + 600}, PRIVATE_PEM, "RS256"
        ),
        "HS256 with the public key": hs256_with(PUBLIC_PEM.encode()),
        "HS256 with nothing": hs256_with(b""),
        "no exp": token(1, 1, without="exp"),
        "exp a word": token(1, 1, exp="tomorrow"),
        "exp without end": token(1, 1, exp=float("inf")),
        "not yet": token(1, 1, nbf=time.time() + 600),
        "no user": token(1, 1, without="uid"),
        "user null": token(None, 1),
        "user 0": token(0, 1),
        "user negative": token(-1, 1),
        "user a boolean": token(True, 1),
        "user a fraction": token(1.5, 1),
        "user too big": token(2**63, 1),
        "user a long text": token("9" * 25, 1),
        "user a text of 5000 digits": token("9" * 5000, 1),
        "user a word": token("admin", 1),
        "user a list": token([1], 1),
        "role a word": token(1, "1"),
        "role a boolean": token(1, True),
        "role a list": token(1, [1]),
        "nested header": unsigned(b"[" * 2000),
        "nested payload": unsigned({"alg": "HS256"}, b"[" * 2000, b"x"),
        "header a list": unsigned([]),
        "header no JSON": unsigned(b"\xff\xfe"),
        "kid a number": unsigned({"alg": "HS256", "kid": 7}, None, b"x"),
        "crit": unsigned({"alg": "HS256", "crit": ["b64"], "b64": False}, None, b"x"),
        "garbage": "garbage",
        "dots": "...",
        "two dots": "..",
        "nearly an API key": API_KEY[:-1] + "0",
        "an API key's beginning": API_KEY[:-1],
    }
