"""Tokens whose header is known are judged as PyJWT judges them, which is asked about all others."""

from __future__ import annotations

import json
import time
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from typing import Any

import jwt
import msgspec
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from pushd.auth import tokens
from pushd.auth.tokens import Verifier
from pushd.config.schema import AuthConfig
from pushd.errors import RequestError

SECRET = "s" * 32
NOW = int(time.time())
CLAIMS: Mapping[str, Any] = {"uid": 7, "type": 2, "exp": NOW + 3600, "iss": "shop", "aud": "pushd"}
AUTH = AuthConfig(mode="jwt", jwt_secret=SECRET, jwt_issuer="shop", jwt_audience="pushd", leeway_s=5)


def signed(claims: Any = CLAIMS, **header: Any) -> str:
    """Signed rightly, whatever it says."""
    document = claims if isinstance(claims, bytes) else msgspec.json.encode(claims)
    return jwt.PyJWS().encode(document, SECRET, "HS256", headers=header or None)


def verdict(verifier: Verifier, token: str) -> Any:
    """The claims, or what was raised."""
    try:
        return verifier.claims(token, time.time())
    except RequestError as error:
        return str(error)
    except Exception as error:
        return type(error).__name__


@pytest.fixture
def stranger() -> Verifier:
    """Has seen no token."""
    return Verifier(AUTH, lambda: SECRET)


@pytest.fixture
def expert(stranger: Verifier) -> Verifier:
    """Knows the header of `signed()`."""
    verifier = Verifier(AUTH, lambda: SECRET)
    verifier.claims(signed(), NOW)
    return verifier


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, expert: Verifier) -> list[str]:
    """The tokens about which PyJWT is asked from now on."""
    found: list[str] = []
    decode = tokens._pyjwt.decode

    def note(token: str, *args: Any, **kwargs: Any) -> Any:
        found.append(token)
        return decode(token, *args, **kwargs)

    monkeypatch.setattr(tokens._pyjwt, "decode", note)
    return found


@pytest.mark.parametrize(
    "claims",
    [
        {},
        {"iat": NOW, "nbf": NOW, "jti": "a", "sub": "b", "text": "é"},
        {"iat": NOW + 4, "nbf": NOW + 4},
    ],
)
def test_a_plain_token_with_a_known_header_needs_no_asking(
    expert: Verifier, asked: list[str], claims: dict[str, Any]
) -> None:
    assert verdict(expert, signed({**CLAIMS, **claims})) == {**CLAIMS, **claims}
    assert not asked


def test_a_clock_may_be_a_little_off(expert: Verifier, asked: list[str]) -> None:
    now = int(time.time())
    for claims in ({"exp": now - 2}, {"nbf": now + 4}, {"iat": now + 4}):
        assert verdict(expert, signed({**CLAIMS, **claims})) == {**CLAIMS, **claims}
    assert not asked


@pytest.mark.parametrize(
    "claims",
    [
        {"exp": NOW - 6},
        {"exp": NOW + 60.5},
        {"exp": str(NOW + 60)},
        {"exp": "soon"},
        {"exp": None},
        {"exp": True},
        {"exp": 2**80},
        {"exp": 1e400},
        {"nbf": NOW + 60},
        {"nbf": None},
        {"nbf": NOW - 0.5},
        {"nbf": "now"},
        {"iat": NOW + 60},
        {"iat": [1]},
        {"iss": "other"},
        {"iss": None},
        {"iss": ["shop"]},
        {"aud": "other"},
        {"aud": ["other", "pushd"]},
        {"aud": ["other"]},
        {"aud": []},
        {"aud": 7},
        {"sub": 7},
        {"sub": None},
        {"sub": ["x"]},
        {"jti": 7},
        {"jti": None},
        {"jti": {}},
        {"uid": None, "type": None, "username": None},
    ],
    ids=str,
)
def test_claims_are_judged_alike(stranger: Verifier, expert: Verifier, claims: dict[str, Any]) -> None:
    token = signed({**CLAIMS, **claims})
    assert verdict(expert, token) == verdict(stranger, token)


@pytest.mark.parametrize("name", ["exp", "nbf", "iat", "iss", "aud", "sub", "jti", "uid", "type", "username", "x"])
def test_a_claim_that_is_null_is_absent(stranger: Verifier, expert: Verifier, name: str) -> None:
    absent = {other: value for other, value in CLAIMS.items() if other != name}
    for verifier in (stranger, expert):
        assert verdict(verifier, signed({**CLAIMS, name: None})) == verdict(stranger, signed(absent))


@pytest.mark.parametrize("claims", [{"sub": 7}, {"sub": 2**70, "jti": 12}, {"sub": [], "jti": True}, {"nbf": None}])
def test_sub_and_jti_may_be_of_any_kind(
    stranger: Verifier, expert: Verifier, asked: list[str], claims: dict[str, Any]
) -> None:
    wanted = {name: value for name, value in {**CLAIMS, **claims}.items() if value is not None}
    token = signed({**CLAIMS, **claims})
    assert verdict(expert, token) == wanted
    assert not asked
    assert verdict(stranger, token) == wanted
    assert asked == [token]


def test_only_claims_lose_their_nulls(stranger: Verifier, expert: Verifier) -> None:
    claims = {**CLAIMS, "more": {"a": None, "b": [None]}, "text": "null", "zero": 0, "no": False}
    assert verdict(stranger, signed(claims)) == verdict(expert, signed(claims)) == claims


@pytest.mark.parametrize("missing", ["iss", "aud"])
def test_what_is_missing_is_missed(stranger: Verifier, expert: Verifier, missing: str) -> None:
    token = signed({name: value for name, value in CLAIMS.items() if name != missing})
    assert verdict(expert, token) == verdict(stranger, token) == "MissingRequiredClaimError"


@pytest.mark.parametrize(
    ("claims", "refusal"),
    [
        ({"exp": None}, "claim exp: found none, expected seconds since 1970"),
        ({"exp": True}, "claim exp: found true, expected seconds since 1970"),
        ({"exp": "soon"}, "claim exp: found a text, expected seconds since 1970"),
        ({"exp": {}}, "claim exp: found an object, expected seconds since 1970"),
        ({"exp": 2**53 + 1}, "claim exp: found 9007199254740993, expected seconds since 1970"),
        ({"exp": 10**400}, "claim exp: found a number beyond 64 bits, expected seconds since 1970"),
        ({"exp": 1e300}, "claim exp: found 1e+300, expected seconds since 1970"),
        ({"nbf": [1]}, "claim nbf: found a list, expected seconds since 1970"),
        ({"nbf": NOW + 3600}, "claim nbf: the token is not in force yet"),
        ({"iat": NOW + 3600}, "claim iat: the token is not in force yet"),
        ({"iat": "yesterday"}, "claim iat: found a text, expected seconds since 1970"),
        ({"exp": NOW - 6}, "TOKEN_EXPIRED: the token has expired"),
    ],
    ids=str,
)
def test_the_claim_that_is_wrong_is_named(stranger: Verifier, claims: dict[str, Any], refusal: str) -> None:
    document = json.dumps({**CLAIMS, **claims}).encode()
    assert str(verdict(stranger, signed(document))).removeprefix("UNAUTHORIZED: ") == refusal


@pytest.mark.parametrize(
    "claims",
    [
        {"nbf": None, "iat": None, "sub": None, "jti": None},
        {"sub": 7, "jti": 7},
        {"exp": str(NOW + 3600), "iat": str(NOW)},
        {"exp": NOW + 3600.5, "nbf": NOW - 0.5, "iat": -1},
        {"exp": 2**53},
    ],
    ids=str,
)
def test_what_decides_nothing_is_no_reason(stranger: Verifier, expert: Verifier, claims: dict[str, Any]) -> None:
    """Null is absent, and nobody asked for `sub` or `jti`."""
    wanted = {name: value for name, value in {**CLAIMS, **claims}.items() if value is not None}
    token = signed({**CLAIMS, **claims})
    assert verdict(stranger, token) == verdict(expert, token) == wanted


def changed(token: str, part: int, text: str) -> str:
    """`token` with another segment; an empty text takes the last character away."""
    parts = token.split(".")
    parts[part] = text.replace("SAME", parts[part]) if text else parts[part][:-1]
    return ".".join(parts)


@pytest.mark.parametrize("part", [0, 1, 2])
@pytest.mark.parametrize("text", ["", "SAME=", "SAME==", "SAMEA", "SAME ", "SAME!", "\nSAME", "+/+/", "é", "SAME.SAME"])
def test_segments_are_judged_alike(stranger: Verifier, expert: Verifier, part: int, text: str) -> None:
    token = changed(signed(), part, text)
    assert verdict(expert, token) == verdict(stranger, token)


def test_spare_bits_of_a_signature_are_judged_alike(stranger: Verifier, expert: Verifier) -> None:
    """32 bytes are 43 characters, the last of which has two bits too many."""
    found = {verdict(expert, signed()[:-1] + last) == CLAIMS for last in "AEIMQUYcgkosw048"}
    assert found == {True, False}
    for last in "BCDFGHJK":
        token = signed()[:-1] + last
        assert verdict(expert, token) == verdict(stranger, token) == "DecodeError"


@pytest.mark.parametrize(
    "payload", [b"[]", b"7", b"", b"{", b'{"exp":NaN}', b'{"uid":"\xff"}', "{}".encode("utf-16"), b"[" * 5000]
)
def test_what_is_no_claims_is_judged_alike(stranger: Verifier, expert: Verifier, payload: bytes) -> None:
    token = signed(payload)
    assert verdict(expert, token) == verdict(stranger, token)


def test_nothing_of_a_refused_token_is_remembered(stranger: Verifier) -> None:
    for token in (signed({**CLAIMS, "exp": 1}), signed()[:-4], jwt.encode(dict(CLAIMS), None, algorithm="none")):
        assert isinstance(verdict(stranger, token), str)
    assert not stranger._signers


def test_a_header_that_says_more_is_not_remembered(stranger: Verifier) -> None:
    for header in ({"x5u": "https://example.com"}, {"cty": "JWT"}, {"jku": "https://example.com"}):
        assert verdict(stranger, signed(CLAIMS, **header)) == CLAIMS
    assert not stranger._signers
    assert verdict(stranger, signed(CLAIMS, kid="1")) == CLAIMS
    assert len(stranger._signers) == 1


def test_an_unsigned_token_does_not_profit_from_a_known_header(expert: Verifier) -> None:
    header, payload, _ = signed().split(".")
    assert verdict(expert, f"{header}.{payload}.") == "InvalidSignatureError"
    other = urlsafe_b64encode(msgspec.json.encode({**CLAIMS, "uid": 8})).rstrip(b"=").decode()
    assert verdict(expert, f"{header}.{other}.{signed().rpartition('.')[2]}") == "InvalidSignatureError"


def test_headers_are_remembered_up_to_a_limit() -> None:
    verifier = Verifier(AUTH, lambda: SECRET, most_headers=2)
    for number in range(5):
        assert verdict(verifier, signed(CLAIMS, kid=str(number))) == CLAIMS
    assert len(verifier._signers) == 2


def test_public_keys_are_prepared_once() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    encoding = (serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    public = key.public_key().public_bytes(*encoding).decode()
    read: list[str] = []

    def read_key() -> str:
        read.append(public)
        return public

    auth = AuthConfig(mode="jwt", jwt_public_key_file="key.pem", jwt_algorithms=("ES256",))
    verifier = Verifier(auth, read_key)
    for uid in range(1, 5):
        claims = {**CLAIMS, "uid": uid}
        assert verdict(verifier, jwt.encode(claims, key, algorithm="ES256")) == claims
    assert len(read) == 2
    forged = jwt.encode(dict(CLAIMS), ec.generate_private_key(ec.SECP256R1()), algorithm="ES256")
    assert verdict(verifier, forged) == "InvalidSignatureError"
