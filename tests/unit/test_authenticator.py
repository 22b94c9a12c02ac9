"""Credentials, origins and addresses: who is let in as whom, and who is not."""

from __future__ import annotations

import hmac
import json
import math
import sqlite3
import time
from base64 import urlsafe_b64encode
from collections.abc import Collection
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar

import bson
import jwt
import msgspec
import orjson
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from pushd.auth.authenticator import ADMIN, Authenticator, Identity, check_keys, forget_keys, issue_token
from pushd.auth.tokens import Verifier
from pushd.config.current import CurrentConfig
from pushd.config.schema import AuthConfig, Config
from pushd.errors import ConfigError, ErrorCode, RequestError, StartError
from pushd.http.messages import Request
from tests.conftest import MakeConfig

SECRET = "s" * 32
KEY, OTHER_KEY = "k" * 16, "key-of-another-backend"
NOW = int(time.time())
CLAIMS = {"uid": 7, "type": 2, "username": "ada", "exp": NOW + 86_400}


@pytest.fixture(autouse=True)
def _forget_keys() -> None:
    forget_keys()


def jwt_config(make_config: MakeConfig, **fields: Any) -> Config:
    return make_config(auth={"mode": "jwt", "jwt_secret": SECRET} | fields)


@pytest.fixture
def authenticator(make_config: MakeConfig) -> Authenticator:
    return Authenticator(CurrentConfig(jwt_config(make_config, api_keys=[KEY, OTHER_KEY])))


@pytest.fixture
def open_door(make_config: MakeConfig) -> Authenticator:
    return Authenticator(CurrentConfig(make_config()))


def signed(secret: str = SECRET, algorithm: str = "HS256", **claims: Any) -> str:
    given = {name: value for name, value in (CLAIMS | claims).items() if value is not ...}
    return jwt.encode(given, secret, algorithm=algorithm)


def request(target: str = "/", peer: str = "203.0.113.9", **headers: str) -> Request:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return Request("GET", target.encode(), names, peer=peer)


def verdict(authenticator: Authenticator, token: str) -> Identity | RequestError:
    try:
        return authenticator.verify(token)
    except RequestError as error:
        return error


def refusal(authenticator: Authenticator, token: str) -> ErrorCode:
    with pytest.raises(RequestError) as caught:
        authenticator.verify(token)
    assert not token or token not in caught.value.text
    return caught.value.code


# ---- tokens


def test_what_a_token_says(authenticator: Authenticator) -> None:
    known = Identity(7, "ada", 2, is_admin=False, expires_s=NOW + 86_405.0, issued_ms=0)
    assert authenticator.verify(signed()) == known
    assert authenticator.verify(signed(iat=NOW - 7, jti="t1")) == replace(
        known, token_id="t1", issued_ms=(NOW - 7) * 1000
    )
    assert authenticator.verify(signed(type=1)).is_admin
    assert authenticator.verify(signed(uid="7")).user_id == 7
    assert authenticator.verify(signed(type=...)).role == 0
    assert authenticator.verify(signed(username=5)).username == ""
    assert authenticator.verify(signed(username=...)).username == ""
    assert authenticator.verify(signed(uid=2**63 - 1)).user_id == 2**63 - 1
    assert authenticator.verify(signed(type=-(2**31))).role == -(2**31)


def test_nulls_say_nothing(authenticator: Authenticator) -> None:
    empty = dict.fromkeys(("type", "username", "jti", "iat", "nbf", "sub", "iss", "aud"))
    nothing = forged({"alg": "HS256"}, CLAIMS | empty)
    assert authenticator.verify(nothing) == Identity(7, "", 0, expires_s=NOW + 86_405.0, issued_ms=0)
    assert refusal(authenticator, signed(exp=None)) is ErrorCode.UNAUTHORIZED


def test_what_decides_nothing_is_mended_or_left_out(authenticator: Authenticator) -> None:
    claims = CLAIMS | {"username": "bob\ud83d" + "x" * 300, "jti": "\ud83d", "iat": -5}
    identity = authenticator.verify(forged({"alg": "HS256"}, claims))
    assert identity.username == "bob\ufffd" + "x" * 251
    assert (identity.token_id, identity.issued_ms) == ("", 0)
    for jti in ("", "x" * 256, "a\0b", 2**64, True, ["a"]):
        assert authenticator.verify(signed(jti=jti)).token_id == ""
    assert authenticator.verify(signed(jti=7)).token_id == "7"


@pytest.mark.parametrize(
    ("claims", "text"),
    [
        ({"uid": ...}, f"claim uid: found none, expected the user, a whole number from 1 to {2**63 - 1}"),
        (
            {"uid": 2**64},
            f"claim uid: found a number beyond 64 bits, expected the user, a whole number from 1 to {2**63 - 1}",
        ),
        (
            {"type": 2**31},
            f"claim type: found {2**31}, expected the role, a whole number from {-(2**31)} to {2**31 - 1}",
        ),
        ({"type": "1"}, f"claim type: found a text, expected the role, a whole number from {-(2**31)} to {2**31 - 1}"),
        ({"exp": [1]}, "claim exp: found a list, expected seconds since 1970"),
    ],
)
def test_a_claim_that_decides_is_named(authenticator: Authenticator, claims: dict[str, Any], text: str) -> None:
    with pytest.raises(RequestError) as caught:
        authenticator.verify(signed(**claims))
    assert (caught.value.code, caught.value.text) == (ErrorCode.UNAUTHORIZED, text)


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters())
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
)
numbers = st.sampled_from([0, 1, -1, NOW, NOW + 60, 2**31, 2**53, 2**63 - 1, 2**63, 2**64, 1e308, float("inf")])
claim_sets = st.fixed_dictionaries(
    {},
    optional={
        "uid": st.integers(1, 2**63 - 1) | values,
        "type": st.integers(-(2**31), 2**31 - 1) | numbers | values,
        "exp": st.integers(NOW + 60, NOW + 10**9) | numbers | values,
        "username": st.text(st.characters()) | values,
        "jti": st.text(st.characters()) | values,
        "iat": st.integers(0, NOW) | values,
        "nbf": st.integers(0, NOW) | values,
        "sub": values,
        "iss": values,
        "aud": values,
    },
)


class Everything:
    """Revocations of which no token is one."""

    async def revoked(self, token_ids: Collection[str]) -> set[str]:
        return set()


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(claims=claim_sets, is_revocable=st.booleans())
def test_whatever_a_token_says(make_config: MakeConfig, claims: dict[str, Any], is_revocable: bool) -> None:
    """It is refused, or everything that keeps and carries what it says can."""
    current = CurrentConfig(jwt_config(make_config))
    authenticator = Authenticator(current, Everything() if is_revocable else None)
    identity = verdict(authenticator, forged({"alg": "HS256"}, CLAIMS | claims))
    if isinstance(identity, RequestError):
        assert identity.code in (ErrorCode.UNAUTHORIZED, ErrorCode.TOKEN_EXPIRED)
        assert len(identity.text.encode()) < 200
        return
    assert identity.token_id or not is_revocable
    said = msgspec.structs.asdict(identity)
    assert orjson.loads(orjson.dumps(said)) == said
    assert msgspec.json.decode(msgspec.json.encode(identity), type=Identity) == identity
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(identity), type=Identity) == identity
    assert bson.decode(bson.encode(said)) == said
    with closing(sqlite3.connect(":memory:")) as connection:
        row = connection.execute(f"SELECT {', '.join('?' * len(said))}", list(said.values())).fetchone()
    assert row == tuple(said.values())
    f"jwt_blacklist:{identity.token_id}".encode()
    assert math.isfinite(identity.expires_s)


@pytest.mark.parametrize("uid", [..., None, 0, -7, 2**63, True, 7.0, "", "-7", "x", "７", "9" * 400, [7], {"id": 7}])
def test_a_token_must_name_a_user(authenticator: Authenticator, uid: Any) -> None:
    assert refusal(authenticator, signed(uid=uid)) is ErrorCode.UNAUTHORIZED


@pytest.mark.parametrize("role", ["1", True, 1.0, [1], {}, 2**31, -(2**31) - 1, 2**63, 2**64, 10**400])
def test_a_role_is_a_number(authenticator: Authenticator, role: Any) -> None:
    assert refusal(authenticator, signed(type=role)) is ErrorCode.UNAUTHORIZED


def test_times_and_leeway(authenticator: Authenticator, make_config: MakeConfig) -> None:
    assert refusal(authenticator, signed(exp=NOW - 60)) is ErrorCode.TOKEN_EXPIRED
    lenient = Authenticator(CurrentConfig(jwt_config(make_config, leeway_s=3600)))
    assert lenient.verify(signed(exp=NOW - 60)).expires_s == NOW + 3540
    assert lenient.verify(signed(nbf=NOW + 600)).user_id == 7
    assert refusal(lenient, signed(exp=NOW - 3660)) is ErrorCode.TOKEN_EXPIRED
    assert refusal(authenticator, signed(exp=...)) is ErrorCode.UNAUTHORIZED
    assert refusal(authenticator, signed(nbf=NOW + 3600)) is ErrorCode.UNAUTHORIZED
    assert refusal(authenticator, signed(iat=NOW + 3600)) is ErrorCode.UNAUTHORIZED
    assert authenticator.verify(signed(nbf=NOW, iat=NOW)).user_id == 7


def test_claims_that_are_null_are_absent(authenticator: Authenticator) -> None:
    plain = authenticator.verify(signed(type=..., username=...))
    for _ in range(2):  # the second header is known
        assert authenticator.verify(signed(type=None, username=None, jti=None, sub=None, nbf=None, iat=None)) == plain
    for claims in ({"uid": None}, {"exp": None}):
        assert refusal(authenticator, signed(**claims)) is ErrorCode.UNAUTHORIZED


def test_a_subject_beside_the_user_does_not_matter(authenticator: Authenticator) -> None:
    for subject in (12, "x", None, [], 2**70, True):
        assert authenticator.verify(signed(sub=subject)).user_id == 7


def test_a_subject_that_is_the_user_may_be_a_number(make_config: MakeConfig) -> None:
    authenticator = Authenticator(CurrentConfig(jwt_config(make_config, user_claim="sub")))
    assert [authenticator.verify(signed(sub=subject)).user_id for subject in (12, "12")] == [12, 12]
    assert refusal(authenticator, signed(sub=None)) is ErrorCode.UNAUTHORIZED


def test_tokens_may_be_counted(authenticator: Authenticator) -> None:
    """A number as `jti` is revoked by its digits; what is no id names none."""
    assert [authenticator.verify(signed(jti=jti)).token_id for jti in (5, "5", 0, None)] == ["5", "5", "0", ""]
    assert {authenticator.verify(signed(jti=jti)).token_id for jti in (True, 1.5, [], {}, {"a": 1})} == {""}


# ---- tokens that are remembered


@pytest.fixture
def verified(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tokens that were verified, each as often as it was."""
    tokens: list[str] = []
    claims = Verifier.claims

    def count(verifier: Verifier, token: str, now_s: float) -> dict[str, Any]:
        tokens.append(token)
        return claims(verifier, token, now_s)

    monkeypatch.setattr(Verifier, "claims", count)
    return tokens


def test_a_valid_token_is_verified_once(authenticator: Authenticator, verified: list[str]) -> None:
    token, other = signed(), signed(uid=8)
    assert authenticator.verify(token) is authenticator.verify(token)
    assert [authenticator.verify(one).user_id for one in (other, token, other)] == [8, 7, 8]
    assert verified == [token, other]


def test_a_token_that_begins_like_a_remembered_one_is_verified(authenticator: Authenticator) -> None:
    token = signed()
    authenticator.verify(token)
    for other in (token[:-1], token + "A", token.partition(".")[0], f" {token}", token.upper()):
        assert refusal(authenticator, other) is ErrorCode.UNAUTHORIZED


@pytest.mark.parametrize("claims", [{"exp": NOW - 60}, {"nbf": NOW + 3600}, {"uid": 0}])
def test_a_refused_token_is_not_remembered(
    authenticator: Authenticator, verified: list[str], claims: dict[str, Any]
) -> None:
    token = signed(**claims)
    assert refusal(authenticator, token) is refusal(authenticator, token)
    assert verified == [token] * 2


def test_a_token_at_which_a_library_panics_is_refused(
    authenticator: Authenticator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def panic(*_: object) -> None:
        raise BaseException("index out of bounds")

    monkeypatch.setattr(Verifier, "claims", panic)
    assert refusal(authenticator, signed()) is ErrorCode.UNAUTHORIZED


@pytest.mark.parametrize("lives_s", [60, 60.9])
def test_a_remembered_token_expires(make_config: MakeConfig, lives_s: float) -> None:
    """To the second as PyJWT would have it, with the leeway."""
    started = int(time.time())  # PyJWT looks at the clock itself
    now = [float(started)]
    authenticator = Authenticator(CurrentConfig(jwt_config(make_config, leeway_s=5)), wall_s=lambda: now[0])
    token = signed(exp=started + lives_s)
    authenticator.verify(token)
    now[0] = started + 64.9
    assert authenticator.verify(token).user_id == 7
    now[0] = started + 65.0
    assert refusal(authenticator, token) is ErrorCode.TOKEN_EXPIRED


@pytest.mark.parametrize(
    "fields",
    [{"jwt_secret": "t" * 32}, {"jwt_issuer": "shop"}, {"jwt_secret": SECRET * 2, "jwt_algorithms": ["HS512"]}],
)
def test_a_reload_forgets_what_the_old_keys_said(make_config: MakeConfig, fields: dict[str, Any]) -> None:
    current = CurrentConfig(jwt_config(make_config))
    authenticator, token = Authenticator(current), signed()
    assert authenticator.verify(token).user_id == 7
    current.config = jwt_config(make_config, **fields)
    assert refusal(authenticator, token) is ErrorCode.UNAUTHORIZED
    current.config = jwt_config(make_config)
    assert authenticator.verify(token).user_id == 7


def test_as_many_tokens_are_remembered_as_are_used(make_config: MakeConfig, verified: list[str]) -> None:
    authenticator = Authenticator(CurrentConfig(jwt_config(make_config)), most_remembered=3)
    busy, *others = [signed(uid=number) for number in range(1, 10)]
    for other in others:
        authenticator.verify(busy)
        authenticator.verify(other)
    assert verified == [busy, *others]
    authenticator.verify(others[-2])
    authenticator.verify(others[0])
    assert verified == [busy, *others, others[0]]


def test_where_tokens_can_be_revoked_they_have_an_id(make_config: MakeConfig) -> None:
    authenticator = Authenticator(CurrentConfig(jwt_config(make_config)), Everything())
    assert authenticator.verify(signed(jti="t1")).token_id == "t1"
    for jti in (..., None, "", 7.5, "x" * 256, "a\nb"):
        with pytest.raises(RequestError, match="claim jti: found") as caught:
            authenticator.verify(signed(jti=jti))
        assert caught.value.code is ErrorCode.UNAUTHORIZED


async def test_a_remembered_token_can_still_be_revoked(make_config: MakeConfig) -> None:
    class Revoked:
        token_ids: ClassVar[set[str]] = set()

        async def revoked(self, token_ids: Collection[str]) -> set[str]:
            return self.token_ids & set(token_ids)

    authenticator = Authenticator(CurrentConfig(jwt_config(make_config)), Revoked())
    token = signed(jti="t1")
    await authenticator.check_revoked(authenticator.verify(token))
    Revoked.token_ids.add("t1")
    with pytest.raises(RequestError) as caught:
        await authenticator.check_revoked(authenticator.verify(token))
    assert caught.value.code is ErrorCode.UNAUTHORIZED


def forged(header: dict[str, Any], claims: Any = CLAIMS, secret: str = SECRET) -> str:
    """A token put together by hand, signed with HS256 whatever its header says."""
    parts = [urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in (header, claims)]
    signature = hmac.digest(secret.encode(), b".".join(parts), "sha256")
    return b".".join([*parts, urlsafe_b64encode(signature).rstrip(b"=")]).decode()


@pytest.mark.parametrize(
    "token",
    [
        "",
        "x",
        "a.b.c",
        "é.é.é",
        "\0.\0.\0",
        ".".join(["x" * 10000] * 3),
        signed(secret="t" * 32),
        signed(algorithm="HS512", secret="s" * 64),
        signed()[:-2],
        signed() + "A",
        forged({"alg": "none"}),
        forged({"alg": "None", "typ": "JWT"}),
        forged({"alg": ["HS256"]}),
        forged({}),
        forged({"alg": "HS256", "crit": ["exp"]}),
        forged({"alg": "HS256"}, [7]),
        forged({"alg": "HS256"}, 7),
        forged({"alg": "HS256"}, CLAIMS | {"exp": "soon"}),
        forged({"alg": "RS256"}),
    ],
    ids=range(19),
)
def test_what_is_no_valid_token(authenticator: Authenticator, token: str) -> None:
    assert refusal(authenticator, token) is ErrorCode.UNAUTHORIZED


def test_none_is_no_algorithm(authenticator: Authenticator) -> None:
    unsigned = jwt.encode(CLAIMS, None, algorithm="none")
    assert refusal(authenticator, unsigned) is ErrorCode.UNAUTHORIZED


def test_issuer_and_audience(make_config: MakeConfig, authenticator: Authenticator) -> None:
    strict = Authenticator(CurrentConfig(jwt_config(make_config, jwt_issuer="shop", jwt_audience="pushd")))
    assert strict.verify(signed(iss="shop", aud="pushd")).user_id == 7
    assert strict.verify(signed(iss="shop", aud=["other", "pushd"])).user_id == 7
    for claims in ({}, {"iss": "shop"}, {"aud": "pushd"}, {"iss": "x", "aud": "pushd"}, {"iss": "shop", "aud": "x"}):
        assert refusal(strict, signed(**claims)) is ErrorCode.UNAUTHORIZED
    # Not asked for, they do not matter.
    assert authenticator.verify(signed(iss="any", aud="any")).user_id == 7


def test_names_of_claims_and_admin_roles(make_config: MakeConfig) -> None:
    config = jwt_config(make_config, user_claim="account", role_claim="level", admin_roles=[8, 9])
    identity = Authenticator(CurrentConfig(config)).verify(signed(account=5, level=9))
    assert (identity.user_id, identity.role, identity.is_admin) == (5, 9, True)
    nobody = Authenticator(CurrentConfig(jwt_config(make_config, admin_roles=[])))
    assert not nobody.verify(signed(type=1)).is_admin


@pytest.fixture
def rsa_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def test_public_keys(make_config: MakeConfig, rsa_key: rsa.RSAPrivateKey, tmp_path: Path) -> None:
    encoding = (serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    path = tmp_path / "key.pem"
    path.write_bytes(rsa_key.public_key().public_bytes(*encoding))
    fields = {"jwt_public_key_file": str(path), "jwt_algorithms": ["RS256"]}
    config = make_config(auth={"mode": "jwt"} | fields)
    check_keys(config.auth)
    authenticator = Authenticator(CurrentConfig(config))
    assert authenticator.verify(jwt.encode(CLAIMS, rsa_key, algorithm="RS256")).user_id == 7
    # The public key is no secret: whoever signs with it as one is refused.
    confused = forged({"alg": "HS256"}, secret=path.read_text())
    assert refusal(authenticator, confused) is ErrorCode.UNAUTHORIZED
    with pytest.raises(ConfigError):
        issue_token(config.auth, user_id=7, role=1, ttl_s=60)
    path.unlink()
    with pytest.raises(StartError, match="jwt_public_key_file"):
        check_keys(config.auth)
    assert authenticator.verify(jwt.encode({**CLAIMS, "jti": "new"}, rsa_key, algorithm="RS256")).user_id == 7
    forget_keys()
    with pytest.raises(StartError, match="jwt_public_key_file"):
        check_keys(config.auth)


def test_issued_tokens_are_accepted(make_config: MakeConfig) -> None:
    config = jwt_config(make_config, jwt_issuer="shop", jwt_audience="pushd", user_claim="account")
    identity = Authenticator(CurrentConfig(config)).verify(issue_token(config.auth, user_id=7, role=1, ttl_s=60))
    assert (identity.user_id, identity.role, identity.is_admin) == (7, 1, True)
    with pytest.raises(ConfigError, match="jwt_secret"):
        issue_token(AuthConfig(), user_id=7, role=1, ttl_s=60)


def test_issued_tokens_are_accepted_when_the_user_is_the_subject(make_config: MakeConfig) -> None:
    config = jwt_config(make_config, user_claim="sub")
    token = issue_token(config.auth, user_id=7, role=1, ttl_s=60)
    assert Authenticator(CurrentConfig(config)).verify(token).user_id == 7


def test_an_expiry_beyond_all_numbers(authenticator: Authenticator) -> None:
    assert refusal(authenticator, signed(exp=10**400)) is ErrorCode.UNAUTHORIZED


# ---- requests


@pytest.mark.parametrize(
    "headers",
    [
        {"x_api_key": KEY},
        {"x_api_key": OTHER_KEY},
        {"authorization": f"Bearer {KEY}"},
        {"authorization": f"bearer   {KEY} "},
        {"x_api_key": KEY, "authorization": "Bearer rubbish"},
    ],
)
def test_api_keys_are_admins(authenticator: Authenticator, headers: dict[str, str]) -> None:
    assert authenticator.identify(request(**headers)) is ADMIN
    assert ADMIN.user_id == 0


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"x_api_key": ""},
        {"x_api_key": KEY[:-1]},
        {"x_api_key": KEY + "k"},
        {"x_api_key": "é" * 16},
        {"authorization": KEY},
        {"authorization": "Bearer"},
        {"authorization": f"Basic {KEY}"},
    ],
)
def test_other_keys_are_refused(authenticator: Authenticator, headers: dict[str, str]) -> None:
    with pytest.raises(RequestError) as caught:
        authenticator.identify(request(**headers))
    assert caught.value.code is ErrorCode.UNAUTHORIZED


def test_every_key_is_compared(authenticator: Authenticator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither which key matched nor where one differs can be told from the time it takes."""
    compared: list[bytes] = []
    compare = hmac.compare_digest

    def compare_digest(given: bytes, key: bytes) -> bool:
        compared.append(key)
        return compare(given, key)

    monkeypatch.setattr(hmac, "compare_digest", compare_digest)
    assert authenticator.identify(request(x_api_key=KEY)) is ADMIN
    assert compared == [KEY.encode(), OTHER_KEY.encode()]


def test_tokens_in_headers_and_queries(authenticator: Authenticator) -> None:
    token = signed()
    assert authenticator.identify(request(authorization=f"Bearer {token}")).user_id == 7
    in_query = request(f"/ws?token={token}")
    assert authenticator.identify(in_query, query_token=True).user_id == 7
    with pytest.raises(RequestError):
        authenticator.identify(in_query)
    by_header = request(f"/ws?token={token}", authorization=f"Bearer {signed(uid=8)}")
    assert authenticator.identify(by_header, query_token=True).user_id == 8


def test_a_bare_user_id_is_nobody(authenticator: Authenticator) -> None:
    with pytest.raises(RequestError):
        authenticator.identify(request("/ws?user_id=7"), query_token=True)


def test_without_credentials_everybody_is_an_admin(open_door: Authenticator) -> None:
    assert open_door.identify(request()) is ADMIN


# ---- where a request comes from


def is_forbidden(authenticator: Authenticator, **headers: str) -> bool:
    try:
        authenticator.check_source(request(**headers))
    except RequestError as error:
        return error.code is ErrorCode.FORBIDDEN
    return False


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True),
        ("LOCALHOST:8801", True),
        ("app.localhost:8801", True),
        ("127.0.0.1:8801", True),
        ("127.9.9.9", True),
        ("[::1]:8801", True),
        ("[::1]", True),
        ("", False),
        ("example.com", False),
        ("localhost.example.com", False),
        ("evil-localhost", False),
        ("127.0.0.1.example.com", False),
        ("10.0.0.1", False),
        ("[::2]", False),
        ("[::1", False),
        ("0.0.0.0", False),
    ],
)
def test_without_credentials_only_loopback_names_are_served(
    open_door: Authenticator, authenticator: Authenticator, host: str, expected: bool
) -> None:
    assert is_forbidden(open_door, host=host) != expected
    assert not is_forbidden(authenticator, host=host)


def test_origins(authenticator: Authenticator) -> None:
    host = "push.example.com:8801"
    assert not is_forbidden(authenticator, host=host)
    assert not is_forbidden(authenticator, host=host, origin="http://push.example.com:8801")
    assert not is_forbidden(authenticator, host=host, origin="http://PUSH.example.com:8801")
    for origin in (
        "https://push.example.com:8801",
        "https://evil.example",
        "null",
        "",
        "push.example.com:8801",
        "https://push.example.com",
        "https://",
    ):
        assert is_forbidden(authenticator, host=host, origin=origin)
    assert is_forbidden(authenticator, host="", origin="https://")


@pytest.mark.parametrize(
    ("is_secure", "host", "origin", "expected"),
    [
        (False, "x:80", "http://x", True),
        (False, "x", "http://x:80", True),
        (False, "x:443", "http://x", False),
        (False, "x:443", "https://x", False),
        (True, "x:443", "https://x", True),
        (True, "x", "https://x", True),
        (True, "x", "http://x", False),
        (True, "x:80", "http://x", False),
        (True, "x:80", "https://x", False),
        (True, "X.Example", "https://x.example:443", True),
        (True, "[2001:db8::7]", "https://[2001:DB8:0::7]", True),
        (False, "[::1]:8801", "http://[::1]:8801", True),
        (False, "[::1]:8801", "http://[::2]:8801", False),
        (False, "x:", "http://x", True),
        (False, "x", "ws://x", False),
    ],
)
def test_an_origin_is_a_scheme_a_host_and_a_port(
    authenticator: Authenticator, is_secure: bool, host: str, origin: str, expected: bool
) -> None:
    asked = Request(headers={"host": host, "origin": origin}, is_secure=is_secure, peer="127.0.0.1")
    assert authenticator.is_allowed_origin(asked) is expected


@pytest.mark.parametrize(
    ("peer", "proto", "schemes"),
    [
        ("10.0.0.1", "https", {"https"}),
        ("10.0.0.1", "HTTPS, http", {"https"}),
        ("10.0.0.1", "wss", {"https"}),
        ("10.0.0.1", "http", {"http"}),
        ("10.0.0.1", " http , https", {"http"}),
        ("10.0.0.1", "", {"http", "https"}),
        ("10.0.0.1", "spdy", {"http", "https"}),
        ("::ffff:10.0.0.1", "https", {"https"}),
        ("203.0.113.9", "https", {"http"}),
        ("", "https", {"http"}),
    ],
)
def test_a_trusted_proxy_says_by_which_scheme(
    make_config: MakeConfig, peer: str, proto: str, schemes: set[str]
) -> None:
    authenticator = Authenticator(CurrentConfig(make_config(server={"trusted_proxies": ["10.0.0.0/8"]})))
    for scheme in ("http", "https"):
        headers = {"host": "x", "x-forwarded-proto": proto, "origin": f"{scheme}://x"}
        assert authenticator.is_allowed_origin(Request(headers=headers, peer=peer)) is (scheme in schemes)


def test_listed_origins(make_config: MakeConfig) -> None:
    listed = Authenticator(CurrentConfig(jwt_config(make_config, allowed_origins=["https://admin.example.com"])))
    assert not is_forbidden(listed, host="h", origin="https://admin.example.com")
    assert not is_forbidden(listed, host="h", origin="https://ADMIN.example.com")
    assert not is_forbidden(listed, host="h", origin="https://admin.example.com:443")
    for origin in ("http://admin.example.com", "https://admin.example.com.evil.example", "null", "file://"):
        assert is_forbidden(listed, host="h", origin=origin)
    files = Authenticator(CurrentConfig(jwt_config(make_config, allowed_origins=["null", "file://"])))
    assert not is_forbidden(files, host="h", origin="null")
    assert not is_forbidden(files, host="h", origin="file://")
    for origin in ("", "file:///", "https://null", "nul"):
        assert is_forbidden(files, host="h", origin=origin)
    anybody = Authenticator(CurrentConfig(jwt_config(make_config, allowed_origins=["*"])))
    assert not is_forbidden(anybody, host="h", origin="null")


@pytest.mark.parametrize(
    ("peer", "forwarded", "expected"),
    [
        ("203.0.113.9", "198.51.100.1", "203.0.113.9"),  # not a proxy of ours: anybody can say anything
        ("10.0.0.1", "", "10.0.0.1"),
        ("10.0.0.1", "198.51.100.1", "198.51.100.1"),
        ("10.0.0.1", "6.6.6.6, 198.51.100.1", "198.51.100.1"),
        ("10.0.0.1", "198.51.100.1, 10.0.0.2", "198.51.100.1"),
        ("10.0.0.1", "10.0.0.3,10.0.0.2", "10.0.0.3"),
        ("10.0.0.1", "198.51.100.1, unknown", "10.0.0.1"),
        ("10.0.0.1", "198.51.100.1, unknown, 10.0.0.2", "10.0.0.2"),
        ("10.0.0.1", "198.51.100.1:4711", "198.51.100.1"),
        ("10.0.0.1", "198.51.100.1:4711, 10.0.0.2:80,10.0.0.3:443", "198.51.100.1"),
        ("10.0.0.1", "[2001:db8::7]:4711", "2001:db8::7"),
        ("10.0.0.1", "[2001:DB8:0::7]", "2001:db8::7"),
        ("10.0.0.1", "2001:db8::7", "2001:db8::7"),
        ("10.0.0.1", '"[2001:db8::7]:4711"', "2001:db8::7"),
        ("10.0.0.1", '"198.51.100.1"', "198.51.100.1"),
        ("10.0.0.1", "fe80::1%eth0", "fe80::1"),
        ("10.0.0.1", "[fe80::1%25eth0]:4711", "fe80::1"),
        ("10.0.0.1", "::ffff:198.51.100.1", "198.51.100.1"),
        ("10.0.0.1", "[::FFFF:c633:6401]:4711", "198.51.100.1"),
        ("10.0.0.1", "198.51.100.1, ::ffff:10.0.0.2", "198.51.100.1"),
        ("10.0.0.1", "198.51.100.1, [fd00::2]:80", "198.51.100.1"),
        ("10.0.0.1", "  198.51.100.1\t", "198.51.100.1"),
        ("10.0.0.1", "198.51.100.1,,  ,", "198.51.100.1"),
        ("10.0.0.1", ", , 198.51.100.1, ,10.0.0.2,", "198.51.100.1"),
        ("10.0.0.1", "6.6.6.6, , 198.51.100.1", "198.51.100.1"),
        ("10.0.0.1", ",,,", "10.0.0.1"),
        *(
            ("10.0.0.1", f"198.51.100.1, {entry}", "10.0.0.1")
            for entry in (
                "unknown",
                "_hidden",
                "-",
                "198.51.100",
                "198.51.100.256",
                "198.51.100.1:",
                "198.51.100.1:port",
                "[]",
                "198.51.100.01",
                "[2001:db8::7",
                "2001:db8::7]",
                "2001:db8:::7",
                "[2001:db8::7]4711",
                "for=6.6.6.6",
                "%",
                "unix:",
                "localhost",
                "1:2:3:4:5:6:7:8:9",
                "٣.٣.٣.٣",
                "6.6.6.6 7.7.7.7",
                "6.6.6.6/8",
                "0x06060606",
                ":80",
            )
        ),
        ("::ffff:10.0.0.1", "198.51.100.1:4711", "198.51.100.1"),
        ("fd00::1", "2001:db8::7", "2001:db8::7"),
        ("", "198.51.100.1", ""),
    ],
)
def test_addresses_behind_proxies(make_config: MakeConfig, peer: str, forwarded: str, expected: str) -> None:
    current = CurrentConfig(make_config(server={"trusted_proxies": ["10.0.0.0/8", "fd00::/8"]}))
    assert Authenticator(current).client_ip(request(peer=peer, x_forwarded_for=forwarded)) == expected


@pytest.mark.parametrize("proxy", ["10.0.0.1/32", "10.0.0.1", "::ffff:10.0.0.0/104", "::ffff:a00:1", "::/0"])
def test_a_proxy_is_known_in_either_family(make_config: MakeConfig, proxy: str) -> None:
    authenticator = Authenticator(CurrentConfig(make_config(server={"trusted_proxies": [proxy]})))
    peers = ("10.0.0.1", "::ffff:10.0.0.1", "::ffff:a00:1") if proxy != "::/0" else ("fd00::1",)
    for peer in peers:
        assert authenticator.client_ip(request(peer=peer, x_forwarded_for="198.51.100.1")) == "198.51.100.1"
    assert authenticator.client_ip(request(peer="11.0.0.1", x_forwarded_for="198.51.100.1")) == "11.0.0.1"


def test_without_proxies_the_peer_is_the_client(open_door: Authenticator) -> None:
    assert open_door.client_ip(request(peer="10.0.0.1", x_forwarded_for="198.51.100.1")) == "10.0.0.1"
