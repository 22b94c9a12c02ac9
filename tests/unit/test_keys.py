"""The public key file: what is taken, and what is refused with the file's name."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa, x25519
from cryptography.x509.oid import NameOID

from pushd.auth import authenticator
from pushd.auth.keys import public_key
from pushd.config.schema import AuthConfig
from pushd.errors import ConfigError, StartError

ALGORITHMS = ("RS256", "PS512", "ES256", "ES384", "ES512", "EdDSA")


@pytest.fixture(scope="module")
def keys() -> dict[str, Any]:
    """Private keys by what they are for."""
    return {
        "RSA": rsa.generate_private_key(public_exponent=65537, key_size=2048),
        "small RSA": rsa.generate_private_key(public_exponent=65537, key_size=1024),
        "P-256": ec.generate_private_key(ec.SECP256R1()),
        "P-384": ec.generate_private_key(ec.SECP384R1()),
        "P-521": ec.generate_private_key(ec.SECP521R1()),
        "K-256": ec.generate_private_key(ec.SECP256K1()),
        "Ed25519": ed25519.Ed25519PrivateKey.generate(),
        "Ed448": ed448.Ed448PrivateKey.generate(),
        "X25519": x25519.X25519PrivateKey.generate(),
        "DSA": dsa.generate_private_key(key_size=2048),
    }


FITTING = {
    "RSA": {"RS256", "PS512"},
    "P-256": {"ES256"},
    "P-384": {"ES384"},
    "P-521": {"ES512"},
    "Ed25519": {"EdDSA"},
    "Ed448": {"EdDSA"},
}


def public_pem(key: Any) -> bytes:
    pem: bytes = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return pem


def private_pem(key: Any, secret: bytes = b"") -> bytes:
    encryption = serialization.BestAvailableEncryption(secret) if secret else serialization.NoEncryption()
    pem: bytes = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    return pem


def certificate(key: Any) -> bytes:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "pushd")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(7).not_valid_before(now).not_valid_after(now + timedelta(days=1))
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


@pytest.fixture
def file(tmp_path: Path) -> Callable[[bytes], Path]:
    def write(content: bytes) -> Path:
        path = tmp_path / "key.pem"
        path.write_bytes(content)
        return path

    return write


def refusal(path: Path, *algorithms: str, kind: type[Exception] = ConfigError) -> str:
    with pytest.raises(kind) as caught:
        public_key(str(path), algorithms)
    text = str(caught.value)
    assert text.startswith("auth.jwt_public_key_file: ")
    assert str(path) in text
    assert "\n" not in text
    return text


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_key_with_every_algorithm(keys: dict[str, Any], file: Callable[[bytes], Path], algorithm: str) -> None:
    for name, key in keys.items():
        path = file(public_pem(key))
        if algorithm in FITTING.get(name, ()):
            text = public_key(str(path), [algorithm])
            signed = jwt.encode({"uid": 7}, key, algorithm)
            assert jwt.decode(signed, text, [algorithm]) == {"uid": 7}
        else:
            assert algorithm in refusal(path, algorithm)


def test_the_key_must_fit_all_algorithms(keys: dict[str, Any], file: Callable[[bytes], Path]) -> None:
    path = file(public_pem(keys["RSA"]))
    assert public_key(str(path), ["RS256", "PS256", "RS512"])
    assert "found an RSA key of 2048 bits" in refusal(path, "RS256", "ES256")


def test_other_forms_of_public_keys(keys: dict[str, Any], file: Callable[[bytes], Path]) -> None:
    public = keys["RSA"].public_key()
    pkcs1 = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.PKCS1)
    ssh = public.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    for content in (pkcs1, ssh, b"# our key, \xc3\xbcber alles\n" + pkcs1, pkcs1.replace(b"\n", b"\r\n")):
        assert public_key(str(file(content)), ["RS256"])


def test_what_is_no_public_key(keys: dict[str, Any], file: Callable[[bytes], Path]) -> None:
    pem = public_pem(keys["RSA"])
    small = public_pem(keys["small RSA"])
    for content, found in (
        (b"", "nothing"),
        (b" \n\n", "nothing"),
        (b"garbage", "no key"),
        (b"\xff\xfe\0", "bytes that are no text"),
        (b'{"kty":"RSA","n":"AQAB","e":"AQAB"}', "no key"),
        (pem[:100], "no key"),
        (pem.replace(b"MII", b"MIX"), "no key"),
        (b"-----BEGIN PUBLIC KEY-----\n-----END PUBLIC KEY-----\n", "no key"),
        (small, "an RSA key of 1024 bits"),
        (private_pem(keys["RSA"]), "a private key"),
        (private_pem(keys["RSA"], b"locked"), "a private key"),
        (pem + private_pem(keys["RSA"]), "a private key"),
        (certificate(keys["RSA"]), "a certificate"),
        (b"x" * 70_000, "more than 65536 bytes"),
        (public_pem(keys["P-384"]), "an EC key on the curve secp384r1"),
        (public_pem(keys["X25519"]), "a key of another kind (X25519)"),
    ):
        text = refusal(file(content), "RS256")
        assert f"found {found}, expected " in text
        assert "PRIVATE" not in text


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/zero")):
        assert "no regular file" in refusal(path, "RS256")
    assert "No such file" in refusal(tmp_path / "none.pem", "RS256", kind=StartError)


def test_an_unusable_file_changes_nothing(keys: dict[str, Any], file: Callable[[bytes], Path]) -> None:
    path = file(public_pem(keys["RSA"]))
    config = AuthConfig(mode="jwt", jwt_public_key_file=str(path), jwt_algorithms=("RS256",))
    authenticator.check_keys(config)
    verifier = authenticator._verifier(config)
    token = jwt.encode({"uid": 7, "exp": 2**40}, keys["RSA"], "RS256")
    for content in (b"", public_pem(keys["P-256"])):
        path.write_bytes(content)
        with pytest.raises(ConfigError):
            authenticator.check_keys(config)
        assert verifier.claims(token, 0.0)["uid"] == 7
        assert authenticator._verifier(config).claims(token, 0.0)["uid"] == 7
