"""What there is at a path."""

from __future__ import annotations

from typing import Any

import pytest

from pushd.api.endpoint import Endpoint, Rights
from pushd.api.routes import Routes


def endpoint(method: str, path: str) -> Endpoint:
    def handle(call: Any) -> None:
        """Nobody calls it."""

    return Endpoint(method, path, Rights.PUBLIC, handle, dict[str, str], "")


ROUTES = Routes(
    "/api",
    [
        endpoint("GET", "/a"),
        endpoint("POST", "/a"),
        endpoint("GET", "/a/{name}"),
        endpoint("DELETE", "/a/{name}"),
        endpoint("GET", "/a/{name}/b.c"),
        endpoint("GET", "/a/{name}/{other}/d"),
    ],
)


@pytest.mark.parametrize(
    ("path", "found", "params"),
    [
        ("/api/a", {"GET", "POST"}, {}),
        ("/api/a/x", {"GET", "DELETE"}, {"name": "x"}),
        ("/api/a/x%2Fy%20", {"GET", "DELETE"}, {"name": "x/y "}),
        ("/api/a/..x", {"GET", "DELETE"}, {"name": "..x"}),
        ("/api/a/x/b.c", {"GET"}, {"name": "x"}),
        ("/api/a/x/y/d", {"GET"}, {"name": "x", "other": "y"}),
        ("/api/a/" + "x" * 512, {"GET", "DELETE"}, {"name": "x" * 512}),
    ],
)
def test_there_is_something(path: str, found: set[str], params: dict[str, str]) -> None:
    methods, found_params = ROUTES.at(path)
    assert methods is not None
    assert (set(methods), found_params) == (found, params)
    assert all(route.endpoint.method == method for method, route in methods.items())


@pytest.mark.parametrize(
    "path",
    ["/a", "/api", "/api/a/", "/api/a/.", "/api/a/..", "/api/a/./b.c", "/api/a/x/bxc", "/api/a/x/y", "/api/A",
     "/api/a\n", "/api/a/" + "x" * 513],
)  # fmt: skip
def test_there_is_nothing(path: str) -> None:
    assert ROUTES.at(path) == (None, {})
