"""The public key that tokens are checked with: a PEM file, looked at before it is relied on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key, load_ssh_public_key

from pushd.errors import ConfigError, StartError

KEY = "auth.jwt_public_key_file"
MOST_BYTES = 65_536
LEAST_RSA_BITS = 2048  # RFC 7518 sections 3.3 and 3.5

_EXPECTED = {
    "RS": f"an RSA key of at least {LEAST_RSA_BITS} bits",
    "PS": f"an RSA key of at least {LEAST_RSA_BITS} bits",
    "ES256": "an EC key on the curve secp256r1",
    "ES384": "an EC key on the curve secp384r1",
    "ES512": "an EC key on the curve secp521r1",
    "EdDSA": "an Ed25519 or Ed448 key",
}


def public_key(path: str, algorithms: Sequence[str]) -> str:
    """The text of a file whose public key fits all of the algorithms.

    Raises StartError when the file cannot be read, and ConfigError for what is in it; both name the key and the file.
    """
    text = _read(path)
    for algorithm in algorithms:
        if not _fits(text, algorithm):
            because = f"because auth.jwt_algorithms has {algorithm}"
            raise _unusable(path, _described(text), f"the public half of {_expected(algorithm)} as PEM, {because}")
    return text


def _unusable(path: str, found: str, expected: str = "a PEM file") -> ConfigError:
    return ConfigError(f"{KEY}: {path}: found {found}, expected {expected}")


def _read(path: str) -> str:
    file = Path(path)
    try:
        if file.exists() and not file.is_file():  # reading a device or a pipe may never end
            raise _unusable(path, "no regular file")
        with file.open("rb") as opened:
            data = opened.read(MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        raise StartError(f"{KEY}: cannot read {path}: {error}") from error
    if len(data) > MOST_BYTES:
        raise _unusable(path, f"more than {MOST_BYTES} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise _unusable(path, "bytes that are no text") from None


def _expected(algorithm: str) -> str:
    return _EXPECTED.get(algorithm) or _EXPECTED[algorithm[:2]]


def _fits(text: str, algorithm: str) -> bool:
    match _loaded(text):
        case None:
            return False
        case RSAPublicKey() as key if key.key_size < LEAST_RSA_BITS:
            return False
        case EllipticCurvePublicKey() as key if key.curve.name not in _expected(algorithm):
            return False
    try:
        jwt.get_algorithm_by_name(algorithm).prepare_key(text)
    except Exception:  # it has many for a key that is another algorithm's
        return False
    return True


def _loaded(text: str) -> Any:
    """The public key; None where there is none, or more than that."""
    if "PRIVATE KEY-----" in text:
        return None
    load = load_pem_public_key if "-----BEGIN" in text else load_ssh_public_key
    try:
        return load(text.encode())
    except Exception:  # of several libraries below
        return None


def _described(text: str) -> str:
    """What stands in the file, in a few words."""
    if not text.strip():
        return "nothing"
    for label, found in (("PRIVATE KEY-----", "a private key"), ("CERTIFICATE-----", "a certificate")):
        if label in text:
            return found
    match _loaded(text):
        case None:
            return "no key"
        case RSAPublicKey() as key:
            return f"an RSA key of {key.key_size} bits"
        case EllipticCurvePublicKey() as key:
            return f"an EC key on the curve {key.curve.name}"
        case key:
            return f"a key of another kind ({type(key).__name__.removesuffix('PublicKey')})"
