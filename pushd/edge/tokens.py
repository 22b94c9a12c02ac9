"""JSON Web Tokens. What PyJWT says of one holds; of most it is known beforehand, for a quarter of what asking costs.

All tokens of an issuer have the same few headers. Once PyJWT has found a token valid, its header is known, and with it
the algorithm and the key. Another token with the same header, byte for byte, is valid when its signature is, which the
algorithm of PyJWT's says, and when its claims are plainly in force. Whatever else it is, PyJWT is asked, so nothing is
refused here, and nothing is accepted that PyJWT would refuse.

PyJWT is asked with two rules of ours: a claim that is null is absent, and of what kind `sub` and `jti` are is left to
whoever uses them, for issuers also put numbers there.
"""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable
from typing import Any, NamedTuple

import jwt
import msgspec
from jwt.algorithms import Algorithm

from pushd.config import AuthConfig

MAX_KNOWN_HEADERS = 64
# Headers with other fields are not learned: they may change how the rest is read (RFC 7515 section 4.1.11).
_PLAIN_FIELDS = frozenset({"alg", "kid", "typ"})
_decode_claims = msgspec.json.Decoder(dict[str, Any]).decode


class _PyJWT(jwt.PyJWT):
    def _decode_payload(self, decoded: dict[str, Any]) -> dict[str, Any]:
        """Without the claims that are null. PyJWT means it to be overridden."""
        return _present(super()._decode_payload(decoded))


_pyjwt = _PyJWT()


class _Signer(NamedTuple):
    algorithm: Algorithm
    key: Any  # as the algorithm wants it


class Verifier:
    """Checks tokens against one configuration, and with what `read_key` says the verification key is."""

    def __init__(self, auth: AuthConfig, read_key: Callable[[], str]) -> None:
        self._auth = auth
        self._read_key = read_key
        self._signers: dict[str, _Signer] = {}  # by the header's segment

    def claims(self, token: str, now_s: float) -> dict[str, Any]:
        """What a valid token says. Raises PyJWT's errors, and what it lets through of its JSON parser's."""
        signed, _, signature = token.rpartition(".")
        header, _, payload = signed.partition(".")
        signer = self._signers.get(header)
        if signer is not None and _is_signed(signed, signature, signer):
            claims = _claims_of(payload)
            if claims is not None and self._are_in_force(claims, now_s):
                return claims
        claims = self._decoded(token)
        if signer is None:
            self._learn(header, token)
        return claims

    def _are_in_force(self, claims: dict[str, Any], now_s: float) -> bool:
        """Whether PyJWT has nothing to say against them. What takes more than a glance is left to it."""
        auth, get = self._auth, claims.get
        expires, begins, issued = get("exp"), get("nbf", 0), get("iat", 0)
        return (
            (type(expires) is int and type(begins) is int and type(issued) is int)
            and expires > now_s - auth.leeway_s
            and max(begins, issued) <= now_s + auth.leeway_s
            and (not auth.jwt_issuer or get("iss") == auth.jwt_issuer)
            and (not auth.jwt_audience or get("aud") == auth.jwt_audience)
        )

    def _decoded(self, token: str) -> dict[str, Any]:
        auth = self._auth
        return _pyjwt.decode(
            token,
            self._read_key(),
            algorithms=list(auth.jwt_algorithms),
            issuer=auth.jwt_issuer or None,
            audience=auth.jwt_audience or None,
            leeway=auth.leeway_s,
            options={
                "require": ["exp"],
                "verify_aud": bool(auth.jwt_audience),
                "verify_sub": False,
                "verify_jti": False,
            },
        )

    def _learn(self, segment: str, token: str) -> None:
        """Remember the header of a token that was found valid."""
        header = jwt.get_unverified_header(token)
        if len(self._signers) < MAX_KNOWN_HEADERS and header.keys() <= _PLAIN_FIELDS:
            algorithm = jwt.get_algorithm_by_name(header["alg"])
            self._signers[segment] = _Signer(algorithm, algorithm.prepare_key(self._read_key()))


def _is_signed(signed: str, signature: str, signer: _Signer) -> bool:
    given = _decoded_segment(signature)
    return given is not None and signer.algorithm.verify(signed.encode(), signer.key, given)


def _claims_of(payload: str) -> dict[str, Any] | None:
    document = _decoded_segment(payload)
    try:
        return None if document is None else _present(_decode_claims(document))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _present(claims: dict[str, Any]) -> dict[str, Any]:
    """The claims that are not null."""
    return {name: value for name, value in claims.items() if value is not None} if None in claims.values() else claims


def _decoded_segment(segment: str) -> bytes | None:
    """None unless it is base64url in its one form without padding (RFC 7515 section 2)."""
    try:
        given = segment.encode("ascii")
        decoded = urlsafe_b64decode(given + b"==")
    except ValueError:
        return None
    return decoded if urlsafe_b64encode(decoded).rstrip(b"=") == given else None
