"""Who is asking: JSON Web Tokens, API keys, origins, and the client's address behind trusted proxies."""

from __future__ import annotations

import hmac
import re
import secrets
import time
from collections.abc import Callable, Collection
from functools import lru_cache
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

import jwt
import msgspec
from cachetools import LRUCache

from pushd.auth import origins
from pushd.auth.keys import public_key
from pushd.auth.tokens import Verifier, seconds, unusable
from pushd.config.current import CurrentConfig
from pushd.config.schema import AuthConfig
from pushd.errors import ConfigError, ErrorCode, RequestError
from pushd.http.addresses import canonical, is_within, networks
from pushd.http.messages import HEALTH_CHECKS, Request, is_loopback
from pushd.model import UserId
from pushd.ports import Revocations
from pushd.telemetry import faults
from pushd.user_ids import UserIds
from pushd.values import (
    MAX_INT64,
    MAX_ROLE,
    MAX_TOKEN_ID_CHARS,
    MIN_INT64,
    MIN_ROLE,
    clean_name,
    is_plain,
    is_whole,
)

VERIFIED_TOKENS = 1024  # remembered
FORBIDDEN_ORIGIN = "requests from this origin are not allowed (see auth.allowed_origins and server.trusted_proxies)"
FORBIDDEN_HOST = "without credentials only loopback host names are served"

HTTP, HTTPS = ("http",), ("https",)
_FORWARDED_PROTO = {"http": HTTP, "ws": HTTP, "https": HTTPS, "wss": HTTPS}
_FORWARDED = re.compile(
    r""""?(?: \[([0-9A-Fa-f:.]{2,45})(?:%[^]"\s]+)?\](?::\d+)? | ([0-9.]{7,15})(?::\d+)?
    | ([0-9A-Fa-f:.]{2,45})(?:%[^]"\s]+)? )"?""",
    re.ASCII | re.VERBOSE,
)


class Identity(msgspec.Struct, frozen=True):
    """Who a request speaks for. `user_id` 0: an API key or a daemon without credentials; `expires_s` 0: never.

    `issued_ms`: when the token says it was made; 0: it does not say; None: there is no token.
    """

    user_id: UserId = 0
    username: str = ""
    role: int = 0
    is_admin: bool = False
    expires_s: float = 0.0
    token_id: str = ""  # the claim `jti`, by which a token can be revoked
    issued_ms: int | None = None


ADMIN = Identity(is_admin=True)


class Authenticator:
    """Checks credentials against the configuration in force; remembers `most_remembered` tokens that were valid."""

    def __init__(
        self,
        current: CurrentConfig,
        revocations: Revocations | None = None,
        *,
        wall_s: Callable[[], float] = time.time,
        most_remembered: int = VERIFIED_TOKENS,
    ) -> None:
        self._current = current
        self._wall_s = wall_s
        self._verified: LRUCache[str, Identity] = LRUCache(most_remembered)  # tokens found valid
        self._verified_by = current.config.auth
        self._verifier = _verifier(current.config.auth)
        self.revocations = revocations

    def identify(self, request: Request, *, query_token: bool = False) -> Identity:
        """Whoever the credentials name. Raises RequestError UNAUTHORIZED or TOKEN_EXPIRED."""
        auth = self._current.config.auth
        if auth.mode == "none":
            return ADMIN
        credential = _credential(request, query_token=query_token)
        if not credential:
            raise RequestError(ErrorCode.UNAUTHORIZED, "a token or an API key is required")
        if _is_api_key(auth, credential):
            return ADMIN
        return self.verify(credential, remember=not query_token)

    def is_in_force(self, identity: Identity, auth: AuthConfig) -> bool:
        """Whether `identify`, which found this identity under the configuration `auth`, would find it again."""
        is_expired = identity.expires_s and identity.expires_s <= self._wall_s()
        return auth is self._current.config.auth and not is_expired

    def verify(self, token: str, *, remember: bool = True) -> Identity:
        """The identity a signed token states. Raises RequestError UNAUTHORIZED or TOKEN_EXPIRED.

        With `remember`, one that was found valid is remembered until it expires or the configuration is reloaded: a
        publisher shows the same one with each request, and thousands of clients one each. Whether it was revoked
        meanwhile is not asked here (`check_revoked`).
        """
        auth = self._current.config.auth
        if auth is not self._verified_by:
            self._verified.clear()
            self._verifier = _verifier(auth)
            self._verified_by = auth
        if not remember:
            return self._decoded(token, auth)
        identity = self._verified.get(token)
        if identity is None:
            identity = self._verified[token] = self._decoded(token, auth)
            return identity
        if identity.expires_s <= self._wall_s():
            del self._verified[token]
            raise RequestError(ErrorCode.TOKEN_EXPIRED, "the token has expired")
        return identity

    def _decoded(self, token: str, auth: AuthConfig) -> Identity:
        try:
            claims = self._verifier.claims(token, self._wall_s())
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError):  # PyJWT lets some through
            raise RequestError(ErrorCode.UNAUTHORIZED, "the token is not valid") from None
        except (Exception, *faults.ENDINGS):
            raise
        except BaseException:  # a panic of the library that checks signatures
            raise RequestError(ErrorCode.UNAUTHORIZED, "the token is not valid") from None
        identity = _identity(claims, auth, self._current.config.directory.ids)
        if self.revocations is not None and not identity.token_id:
            expected = f"a text of 1 to {MAX_TOKEN_ID_CHARS} characters, by which the token can be revoked"
            raise unusable("jti", claims.get("jti"), expected)
        return identity

    def can_be_revoked(self, identity: Identity) -> bool:
        """Whether `check_revoked` has anything to ask."""
        return self.revocations is not None and bool(identity.token_id)

    async def check_revoked(self, identity: Identity) -> None:
        """Raises RequestError UNAUTHORIZED for a revoked token, StoreError when that cannot be known."""
        if identity.token_id and await self.revoked([identity.token_id]):
            raise RequestError(ErrorCode.UNAUTHORIZED, "the token was revoked")

    async def revoked(self, token_ids: Collection[str]) -> set[str]:
        """The revoked ones of these. Raises StoreError when that cannot be known."""
        return set() if self.revocations is None else await self.revocations.revoked(token_ids)

    def check_source(self, request: Request) -> None:
        """Refuse what a web page of somebody else's makes a browser send. Raises RequestError FORBIDDEN."""
        if self._current.config.auth.mode == "none" and not _is_local(request):
            raise RequestError(ErrorCode.FORBIDDEN, FORBIDDEN_HOST)
        if "origin" in request.headers and not self.is_allowed_origin(request):
            raise RequestError(ErrorCode.FORBIDDEN, FORBIDDEN_ORIGIN)

    def is_allowed_origin(self, request: Request) -> bool:
        """Whether its Origin, which it has, is that of this server, or one of `auth.allowed_origins`."""
        origin, host = request.headers["origin"], request.headers.get("host", "")
        is_listed = origins.is_listed(origin, self._current.config.auth.allowed_origins)
        return is_listed or origins.is_of(origin, host, self._schemes(request))

    def _schemes(self, request: Request) -> tuple[str, ...]:
        """The schemes by which the client may have reached us: a trusted proxy says which, and if it does not, both."""
        if not self._is_proxied(request):
            return HTTPS if request.is_secure else HTTP
        said = request.headers.get("x-forwarded-proto", "").partition(",")[0].strip().lower()
        return _FORWARDED_PROTO.get(said, HTTP + HTTPS)

    def client_ip(self, request: Request) -> str:
        """The address of the client: the last of X-Forwarded-For that is no trusted proxy, else the peer."""
        if not self._is_proxied(request):
            return request.peer
        proxies = networks(self._current.config.server.trusted_proxies)
        client = forwarded_address(request.peer)
        for hop in reversed(request.headers.get("x-forwarded-for", "").split(",")):
            if not hop.strip():
                continue  # RFC 9110 section 5.6.1: empty elements of lists do not count
            address = forwarded_address(hop)
            if not address:
                break
            client = address
            if not is_within(address, proxies):
                break
        return client

    def _is_proxied(self, request: Request) -> bool:
        """Whether the peer is a trusted proxy, which is believed."""
        proxies = networks(self._current.config.server.trusted_proxies)
        return bool(proxies) and is_within(forwarded_address(request.peer), proxies)


def forwarded_address(entry: str) -> str:
    """What an entry of X-Forwarded-For names, as `canonical` writes it; "" for "unknown" and the like.

    Proxies write it with a port, in brackets, in quotes, with a zone.
    """
    match = _FORWARDED.fullmatch(entry.strip(" \t"))
    return "" if match is None else canonical(next(filter(None, match.groups())))


def _verifier(auth: AuthConfig) -> Verifier:
    return Verifier(auth, lambda: _verification_key(auth))


def check_keys(auth: AuthConfig) -> None:
    """Read the key file now rather than refuse every token later.

    Raises ConfigError or StartError (keys.public_key), and then what was read before stays.
    """
    if auth.mode == "jwt" and auth.jwt_public_key_file:
        _public_keys[auth.jwt_public_key_file] = public_key(auth.jwt_public_key_file, auth.jwt_algorithms)


def forget_keys() -> None:
    """Have key files read again when they are next needed."""
    _public_keys.clear()
    _encoded.cache_clear()


def issue_token(auth: AuthConfig, *, user_id: UserId, role: int, ttl_s: int) -> str:
    """A signed token for trying things out. Raises ConfigError where tokens are not signed with a shared secret."""
    if not auth.jwt_secret:
        raise ConfigError("auth.jwt_secret: found nothing, expected the secret to sign tokens with")
    now = int(time.time())
    subject = str(user_id) if auth.user_claim == "sub" else user_id  # RFC 7519 section 4.1.2: a text
    claims: dict[str, Any] = {auth.user_claim: subject, auth.role_claim: role, "iat": now, "exp": now + ttl_s}
    claims["jti"] = secrets.token_hex(8)
    if auth.jwt_issuer:
        claims["iss"] = auth.jwt_issuer
    if auth.jwt_audience:
        claims["aud"] = auth.jwt_audience
    return jwt.encode(claims, auth.jwt_secret, algorithm=auth.jwt_algorithms[0])


def _credential(request: Request, *, query_token: bool) -> str:
    key = request.headers.get("x-api-key")
    if key:
        return key
    scheme, _, value = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    return request.query.get("token", "") if query_token else ""


def _is_api_key(auth: AuthConfig, credential: str) -> bool:
    """Compares with every key, in time that does not depend on where they differ."""
    given = credential.encode()
    is_one = False
    for key in _encoded(auth.api_keys):
        is_one |= hmac.compare_digest(given, key)
    return is_one


@lru_cache(maxsize=4)
def _encoded(keys: tuple[str, ...]) -> tuple[bytes, ...]:
    return tuple(key.encode() for key in keys)


_public_keys: dict[str, str] = {}  # by file


def _verification_key(auth: AuthConfig) -> str:
    if not auth.jwt_public_key_file:
        return auth.jwt_secret
    if auth.jwt_public_key_file not in _public_keys:
        check_keys(auth)
    return _public_keys[auth.jwt_public_key_file]


def _identity(claims: dict[str, Any], auth: AuthConfig, ids: UserIds) -> Identity:
    """Whom a token in force names. Raises RequestError for a claim that decides and cannot be used.

    Claims that are null are absent. A name and an id of the token that cannot be carried decide nothing: the one is
    mended, the other left out.
    """
    claim = claims.get(auth.user_claim)
    user_id = ids.accepted(claim)
    if user_id is None:
        raise unusable(auth.user_claim, claim, f"the user, {ids.expected}")
    role = claims.get(auth.role_claim)
    if role is not None and not is_whole(role, MIN_ROLE, MAX_ROLE):
        raise unusable(auth.role_claim, role, f"the role, a whole number from {MIN_ROLE} to {MAX_ROLE}")
    return Identity(
        user_id=user_id,
        username=clean_name(claims.get("username")),
        role=role or 0,
        is_admin=(role or 0) in auth.admin_roles,
        expires_s=float(seconds(claims, "exp") or 0) + auth.leeway_s,
        token_id=_token_id(claims.get("jti")),
        issued_ms=max(0, seconds(claims, "iat") or 0) * 1000,
    )


def _token_id(jti: object) -> str:
    """The id by which a token can be revoked, "" for none that can be used; some issuers count their tokens."""
    if is_whole(jti, MIN_INT64, MAX_INT64):
        return str(jti)
    return jti if isinstance(jti, str) and len(jti) <= MAX_TOKEN_ID_CHARS and is_plain(jti) else ""


def _is_local(request: Request) -> bool:
    """Whether a request names a loopback host; no browser leaves the name out, but what checks our health may."""
    host = request.headers.get("host")
    if host is None:
        return request.path in HEALTH_CHECKS and is_loopback(request.peer)
    return _is_loopback_name(host)


@lru_cache(maxsize=64)
def _is_loopback_name(host: str) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or name.endswith(".localhost") or ip_address(name).is_loopback
    except ValueError:
        return False
