"""Which endpoints there are at a path."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import unquote

import msgspec

from pushd.api.endpoint import Endpoint
from pushd.api.forms import IdField, id_fields

SEGMENT = r"(?!\.\.?(?:/|\Z))[^/]{1,512}"  # "." and ".." are steps in a path, also when they are percent-encoded


class Route(msgspec.Struct, frozen=True, eq=False):
    """An endpoint with its decoders made."""

    endpoint: Endpoint
    empty_query: Any
    decode_body: Callable[[bytes], Any] | None
    query_ids: tuple[IdField, ...]
    body_ids: tuple[IdField, ...]


Methods = dict[str, Route]  # what there is at a path


def _route(endpoint: Endpoint) -> Route:
    decoder: Any = None if endpoint.body is None else msgspec.json.Decoder(endpoint.body)
    decode = None if decoder is None else decoder.decode
    return Route(endpoint, endpoint.query(), decode, id_fields(endpoint.query), id_fields(endpoint.body))


class Routes:
    """The endpoints by their paths below `prefix`, which may contain parameters."""

    def __init__(self, prefix: str, endpoints: Iterable[Endpoint]) -> None:
        self._exact: dict[str, Methods] = {}
        self._patterns: list[tuple[re.Pattern[str], Methods]] = []
        for endpoint in endpoints:
            self._methods(prefix + endpoint.path)[endpoint.method] = _route(endpoint)

    def _methods(self, path: str) -> Methods:
        if "{" not in path:
            return self._exact.setdefault(path, {})
        pattern = re.compile(re.sub(r"\\{(\w+)\\}", lambda name: f"(?P<{name[1]}>{SEGMENT})", re.escape(path)))
        for known, methods in self._patterns:
            if known == pattern:
                return methods
        added: Methods = {}
        self._patterns.append((pattern, added))
        return added

    def at(self, path: str) -> tuple[Methods | None, dict[str, str]]:
        """The routes by method, and the parameters that stand in the path, percent-decoded; None: there is nothing."""
        methods = self._exact.get(path)
        if methods is not None:
            return methods, {}
        for pattern, candidates in self._patterns:
            match = pattern.fullmatch(path)
            if match is not None:
                return candidates, {name: unquote(value) for name, value in match.groupdict().items()}
        return None, {}
