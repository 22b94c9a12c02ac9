"""`/openapi.json` (OpenAPI 3.1), made from the table and the structs that serve the requests."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import msgspec

from pushd import __version__
from pushd.api.endpoint import Endpoint, Rights
from pushd.api.forms import Nothing
from pushd.api.publishing import Published, Refused
from pushd.config.schema import Config
from pushd.delivery.edits import CHANGING
from pushd.delivery.submission import Submission
from pushd.model import RESERVED_PREFIX, RESERVED_TYPES
from pushd.user_ids import GIVEN, SHOWN, UserIds

REFERENCE = "#/components/schemas/{name}"
SECURITY = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "A JSON Web Token or an API key."},
    "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}


class Failure(msgspec.Struct):
    """Every answer but a 200. `message` is for people, `error` for programs."""

    code: int
    message: str
    error: str
    data: dict[str, Any]


def document(endpoints: Iterable[Endpoint], config: Config) -> dict[str, Any]:
    """The whole document; limits are those of `config`."""
    endpoints = list(endpoints)
    schemas = _schemas(endpoints, config.directory.ids)
    _add_limits(schemas, config)
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in endpoints:
        path = config.server.api_prefix + endpoint.path
        paths.setdefault(path, {})[endpoint.method.lower()] = _operation(endpoint, schemas, config)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "pushd",
            "version": __version__,
            "description": "Notices, receipts, the state of the node. The WebSocket protocol is described elsewhere.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": SECURITY},
    }


def _schemas(endpoints: list[Endpoint], ids: UserIds) -> dict[str, Any]:
    types: list[Any] = [Failure, Submission, Refused]
    for endpoint in endpoints:
        types += [endpoint.data, endpoint.query, *([endpoint.body] if endpoint.body else [])]
    _, schemas = msgspec.json.schema_components(types, ref_template=REFERENCE)
    return {name: _with_plain_patterns(_with_ids(schema, ids)) for name, schema in schemas.items()}


def _with_ids(schema: Any, ids: UserIds) -> Any:
    """With users' ids as they are where the structs allow for either kind."""
    if isinstance(schema, list):
        return [_with_ids(item, ids) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if SHOWN in schema:
        return ids.schema
    if GIVEN in schema:
        return ids.given_schema(min(choice.get("minimum", 1) for choice in schema["anyOf"]))
    return {name: _with_ids(item, ids) for name, item in schema.items()}


def _with_plain_patterns(schema: Any) -> Any:
    """JSON Schema speaks ECMA-262, which has no \\A and \\Z; its ^ and $ mean the same."""
    if isinstance(schema, list):
        return [_with_plain_patterns(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    plain = {name: _with_plain_patterns(item) for name, item in schema.items()}
    if isinstance(pattern := plain.get("pattern"), str):
        plain["pattern"] = pattern.replace(r"\A", "^").replace(r"\Z", "$")
    return plain


def _add_limits(schemas: dict[str, Any], config: Config) -> None:
    """What the structs cannot say: limits that are configured, what a target needs, results of a batch."""
    limits = config.limits
    submission = schemas["Submission"]
    submission["properties"]["content"]["maxLength"] = limits.max_content_chars
    submission["properties"]["data"]["default"] = None
    for field in ("user_ids", "exclude_ids"):
        submission["properties"][field]["maxItems"] = limits.max_user_ids
    submission["allOf"] = [_needs("custom", "user_ids"), _needs("role", "roles"), _needs("group", "groups")]
    submission["properties"]["type"]["not"] = {
        "anyOf": [{"enum": sorted(RESERVED_TYPES)}, {"pattern": f"^{re.escape(RESERVED_PREFIX)}"}]
    }
    edit = schemas["Edit"]
    edit["properties"]["content"]["maxLength"] = limits.max_content_chars
    edit["anyOf"] = [{"required": [field]} for field in CHANGING]
    schemas["DisconnectBody"]["oneOf"] = [_only("user_id", "conn_id"), _only("conn_id", "user_id")]
    if config.auth.mode == "none":
        _require_user(schemas)
    schemas["BatchBody"]["properties"]["notices"]["items"] = _reference(Submission)
    results = {"anyOf": [_reference(Published), _reference(Refused)]}
    schemas["PublishedBatch"]["properties"]["items"]["items"] = results


def _needs(target: str, field: str) -> dict[str, Any]:
    return {
        "if": {"required": ["target"], "properties": {"target": {"const": target}}},
        "then": {"required": [field], "properties": {field: {"minItems": 1}}},
    }


def _only(field: str, other: str) -> dict[str, Any]:
    null = {"type": "null"}
    return {"required": [field], "properties": {field: {"not": null}, other: null}}


def _require_user(schemas: dict[str, Any]) -> None:
    """Without credentials nobody has data of his own: whose is meant must be said."""
    for name in ("MarkBody", "MarksBody", "UserQuery", "InboxQuery", "ReadAllBody"):
        schema = schemas[name]
        schema["properties"]["user_id"] = _without_null(schema["properties"]["user_id"])
        schema["required"] = [*schema.get("required", ()), "user_id"]


def _operation(endpoint: Endpoint, schemas: dict[str, Any], config: Config) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": endpoint.name,
        "summary": endpoint.about,
        "tags": [endpoint.path.split("/")[1]],
        "parameters": [*_path_parameters(endpoint), *_query_parameters(endpoint, schemas), *_headers(endpoint)],
        "responses": {
            "200": {"description": "Done.", "content": _json(_answer(endpoint, config))},
            "4XX": {"description": "Refused.", "content": _json(_reference(Failure))},
            "503": {"description": "Not now; see Retry-After.", "content": _json(_reference(Failure))},
        },
    }
    if endpoint.body is not None:
        operation["requestBody"] = {"required": True, "content": _json(_reference(endpoint.body))}
    if endpoint.rights is not Rights.PUBLIC and config.auth.mode != "none":
        operation["security"] = [{name: []} for name in SECURITY]
    return operation


def _reference(data: Any) -> dict[str, Any]:
    if hasattr(data, "__struct_fields__"):
        return {"$ref": REFERENCE.format(name=data.__name__)}
    (schema,), _ = msgspec.json.schema_components([data], ref_template=REFERENCE)
    return schema


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _answer(endpoint: Endpoint, config: Config) -> dict[str, Any]:
    done = _envelope(_reference(endpoint.data))
    return {"anyOf": [done, _reference(Failure)]} if config.server.status_in_body else done


def _envelope(data: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["code", "message", "data"],
        "properties": {"code": {"const": 200}, "message": {"const": "OK"}, "data": data},
    }


def _path_parameters(endpoint: Endpoint) -> list[dict[str, Any]]:
    names = [segment[1:-1] for segment in endpoint.path.split("/") if segment.startswith("{")]
    schema = {"type": "string", "minLength": 1, "maxLength": 128}
    return [{"name": name, "in": "path", "required": True, "schema": schema} for name in names]


def _query_parameters(endpoint: Endpoint, schemas: dict[str, Any]) -> list[dict[str, Any]]:
    if endpoint.query is Nothing:
        return []
    schema = schemas[endpoint.query.__name__]
    required = schema.get("required", ())
    return [_query_parameter(name, field, name in required) for name, field in schema["properties"].items()]


def _query_parameter(name: str, schema: dict[str, Any], is_required: bool) -> dict[str, Any]:
    """One without a value counts as left out: front ends send every field of a search form."""
    parameter = {"name": name, "in": "query", "required": is_required, "schema": _without_null(schema)}
    return parameter if is_required else parameter | {"allowEmptyValue": True}


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """A query leaves a parameter out where a body would say null."""
    choices = [choice for choice in schema.get("anyOf", []) if choice != {"type": "null"}]
    plain = choices[0] if len(choices) == 1 else schema
    return {key: value for key, value in plain.items() if key != "default" or value is not None}


def _headers(endpoint: Endpoint) -> list[dict[str, Any]]:
    if not endpoint.is_idempotent_by_key:
        return []
    schema = {"type": "string", "maxLength": 255, "pattern": "^[ -~]*$"}
    about = "Any printable text, in UTF-8; the pattern is what no client has to encode."
    return [{"name": "Idempotency-Key", "in": "header", "description": about, "schema": schema}]
