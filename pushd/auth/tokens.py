"""JSON Web Tokens. What PyJWT says of one holds; of most it is known beforehand, for a quarter of what asking costs.

All tokens of an issuer have the same few headers. Once PyJWT has found a token valid, its header is known, and with it
the algorithm and the key. Another token with the same header, byte for byte, is valid when its signature is, which the
algorithm of PyJWT's says, and when issuer and audience plainly are the configured ones. Whatever else it is, PyJWT is
asked, so of these nothing is refused here, and nothing is accepted that PyJWT would refuse.

PyJWT is asked with rules of ours: a claim that is null is absent, and of what kind `sub` and `jti` are is left to
whoever uses them, for issuers also put numbers there. The times are looked at here, in what either way finds: one that
is no number of seconds is named to whoever sent it.
"""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable
from typing import Any, NamedTuple

import jwt
import msgspec
from jwt.algorithms import Algorithm

from pushd.config.schema import AuthConfig
from pushd.errors import ErrorCode, RequestError
from pushd.values import describe

MAX_SECONDS = 2**53  # what a JSON number can say to the second
MAX_KNOWN_HEADERS = 64
# Headers with other fields are not learned: they may change how the rest is read (RFC 7515 section 4.1.11).
_PLAIN_FIELDS = frozenset({"alg", "kid", "typ"})
_decode_claims = msgspec.json.Decoder(dict[str, Any]).decode


_LEFT_TO_US: Any = dict.fromkeys(("verify_exp", "verify_nbf", "verify_iat", "verify_sub", "verify_jti"), False)


def unusable(name: str, value: object, expected: str) -> RequestError:
    """The refusal of a token because of one claim."""
    return RequestError(ErrorCode.UNAUTHORIZED, f"claim {name}: found {describe(value)}, expected {expected}")


def seconds(claims: dict[str, Any], name: str) -> int | None:
    """A time that a token states, in whole seconds (RFC 7519 section 2); None for none. Raises RequestError."""
    value = claims.get(name)
    if type(value) is int and -MAX_SECONDS <= value <= MAX_SECONDS:  # nearly always
        return value
    if value is None:
        return None
    try:
        number = int(value)  # digits in a text, too: PyJWT reads them
    except (TypeError, ValueError, OverflowError):
        raise unusable(name, value, "seconds since 1970") from None
    if isinstance(value, bool) or not -MAX_SECONDS <= number <= MAX_SECONDS:
        raise unusable(name, value, "seconds since 1970")
    return number


class _PyJWT(jwt.PyJWT):
    def _decode_payload(self, decoded: dict[str, Any]) -> dict[str, Any]:
        """Without the claims that are null. PyJWT means it to be overridden."""
        return _present(super()._decode_payload(decoded))


_pyjwt = _PyJWT()


class _Signer(NamedTuple):
    algorithm: Algorithm
    key: Any  # as the algorithm wants it


class Verifier:
    """Checks tokens against one configuration, and with what `read_key` says the verification key is.

    The headers of `most_headers` kinds of valid tokens are remembered.
    """

    def __init__(self, auth: AuthConfig, read_key: Callable[[], str], *, most_headers: int = MAX_KNOWN_HEADERS) -> None:
        self._auth = auth
        self._read_key = read_key
        self._most_headers = most_headers
        self._signers: dict[str, _Signer] = {}  # by the header's segment

    def claims(self, token: str, now_s: float) -> dict[str, Any]:
        """What a valid token says. Raises RequestError, PyJWT's errors, and what PyJWT lets through."""
        signed, _, signature = token.rpartition(".")
        header, _, payload = signed.partition(".")
        signer = self._signers.get(header)
        claims = _claims_of(payload) if signer is not None and _is_signed(signed, signature, signer) else None
        if claims is None or not self._is_for_us(claims):
            claims = self._decoded(token)
        self._check_times(claims, now_s)
        if signer is None:
            self._learn(header, token)
        return claims

    def _is_for_us(self, claims: dict[str, Any]) -> bool:
        """Whether PyJWT has nothing to say against them. What takes more than a glance is left to it."""
        auth = self._auth
        return (not auth.jwt_issuer or claims.get("iss") == auth.jwt_issuer) and (
            not auth.jwt_audience or claims.get("aud") == auth.jwt_audience
        )

    def _check_times(self, claims: dict[str, Any], now_s: float) -> None:
        """Raises RequestError unless the token is in force. To the second, as PyJWT has it."""
        leeway_s = self._auth.leeway_s
        expires_s = seconds(claims, "exp")
        if expires_s is None:
            raise unusable("exp", None, "seconds since 1970")
        if expires_s <= now_s - leeway_s:
            raise RequestError(ErrorCode.TOKEN_EXPIRED, "the token has expired")
        for name in ("nbf", "iat"):
            begins_s = seconds(claims, name)
            if begins_s is not None and begins_s > now_s + leeway_s:
                raise RequestError(ErrorCode.UNAUTHORIZED, f"claim {name}: the token is not in force yet")

    def _decoded(self, token: str) -> dict[str, Any]:
        auth = self._auth
        return _pyjwt.decode(
            token,
            self._read_key(),
            algorithms=list(auth.jwt_algorithms),
            issuer=auth.jwt_issuer or None,
            audience=auth.jwt_audience or None,
            options={"verify_aud": bool(auth.jwt_audience)} | _LEFT_TO_US,
        )

    def _learn(self, segment: str, token: str) -> None:
        """Remember the header of a token that was found valid."""
        header = jwt.get_unverified_header(token)
        if len(self._signers) < self._most_headers and header.keys() <= _PLAIN_FIELDS:
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
