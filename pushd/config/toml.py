"""Configuration from and to text: TOML, the environment's overrides, the commented reference.

Pure: files and the environment are the caller's. `python -m pushd.config.toml` prints configs/reference.toml.
"""

from __future__ import annotations

import re
import textwrap
import tomllib
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any, Literal, NamedTuple, get_args, get_origin

import msgspec
import tomli_w
from msgspec import inspect

from pushd.config import schema
from pushd.config.checks import quote
from pushd.config.schema import Config, describe_forms
from pushd.errors import ConfigError
from pushd.urls import mask_url

_PREFIX = "PUSHD_"
_LINES = dict.fromkeys(map(ord, "\t\r\n"), " ")


class _Key(NamedTuple):
    """One key of the schema: its annotation, what msgspec says of that, and the default."""

    annotation: Any
    type: inspect.Type
    choices: tuple[str, ...]
    about: str
    form: str
    is_secret: bool
    has_lines: bool
    default: Any


class _Given(NamedTuple):
    """A value as it was given, and where: a file or a variable of the environment."""

    value: Any
    where: str


def _key(annotation: Any, field: inspect.Field) -> _Key:
    kind, about, extra = field.type, "", {}
    if isinstance(kind, inspect.Metadata):
        about = (kind.extra_json_schema or {}).get("description", "")
        extra, kind = kind.extra or {}, kind.type
    choices = _choices(annotation)
    form, is_secret, has_lines = extra.get("form", ""), extra.get("secret", False), extra.get("lines", False)
    return _Key(annotation, kind, choices, about, form, is_secret, has_lines, _default(field))


def _default(field: inspect.Field) -> Any:
    return field.default if field.default is not msgspec.NODEFAULT else field.default_factory()


def _choices(annotation: Any) -> tuple[str, ...]:
    """The words of the Literal somewhere in `annotation`, in the order they were written."""
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    return next((found for part in get_args(annotation) if (found := _choices(part))), ())


def _keys() -> Iterator[tuple[str, _Key]]:
    for section, struct in SECTIONS.items():
        info = inspect.type_info(struct)
        annotations = {field.name: field.type for field in msgspec.structs.fields(struct)}
        assert isinstance(info, inspect.StructType)  # noqa: S101 - for the type checker
        for field in info.fields:
            yield f"{section}.{field.name}", _key(annotations[field.name], field)


SECTIONS: dict[str, type[msgspec.Struct]] = {field.name: field.type for field in msgspec.structs.fields(Config)}
KEYS: dict[str, _Key] = dict(_keys())


def parse(text: str, *, source: str, environ: Mapping[str, str]) -> Config:
    """The configuration that TOML `text`, overridden by `environ`, describes; unset keys have their default.

    Raises ConfigError: one line that names `source` or the variable, the key, what was found and what
    was expected. Values of secrets are never in it.
    """
    given = dict(_from_toml(text, source)) | dict(_from_environ(environ))
    values: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
    for key, (value, where) in given.items():
        section, _, name = key.partition(".")
        values[section][name] = _checked(key, value, where)
    try:
        sections: dict[str, Any] = {section: struct(**values[section]) for section, struct in SECTIONS.items()}
        return Config(**sections)
    except ConfigError as error:
        key = str(error).partition(":")[0]
        where = given[key].where if key in given else source
        raise ConfigError(f"{where}: {error}") from None


def dump(config: Config) -> str:
    """The configuration as TOML, in the schema's order; secrets that are set read "***"."""
    tables: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
    for key in KEYS:
        section, _, name = key.partition(".")
        tables[section][name] = _masked(key, getattr(getattr(config, section), name))
    return tomli_w.dumps(tables)


def reference() -> str:
    """A TOML file with every key at its default, each with its meaning, unit, range or choices."""
    lines = textwrap.dedent(_HEAD).strip().splitlines()
    for section, struct in SECTIONS.items():
        lines += ["", "", f"# {(struct.__doc__ or '').splitlines()[0]}", f"[{section}]"]
        for key in KEYS:
            if key.startswith(f"{section}."):
                lines += ["", *_entry(key)]
    return "\n".join(lines) + "\n"


_HEAD = """
    # pushd: every key, with its default. Generated from the schema by `make reference`; do not edit.
    #
    # A file needs only the keys it changes. Each can be overridden by the environment, as
    # PUSHD_<SECTION>_<KEY>: PUSHD_SERVER_PORT=8080, PUSHD_DEBUG_ECHO=true, lists and tables as JSON:
    # PUSHD_AUTH_ADMIN_ROLES='[1, 2]'. So secrets need not be in a file.
    #
    # SIGHUP rereads the file: log.level, limits, auth.api_keys, the auth.jwt_ keys and the files of TLS take effect at
    # once, everything else after a restart.
"""


def describe(key: str) -> str:
    """What `key` can be, in words, for errors and the reference."""
    known = KEYS[key]
    if key in schema.URL_FORMS:
        return describe_forms(key)
    if isinstance(known.type, inspect.VarTupleType):
        items = known.form or _alternatives(known.choices) or _describe_type(known.type.item_type, plural="s")
        return f"a list{', not empty,' * bool(known.type.min_length)} of {items}"
    return known.form or _alternatives(known.choices) or _describe_type(known.type)


def _alternatives(choices: Iterable[str]) -> str:
    *others, last = [quote(choice) for choice in choices] or [""]
    return f"{', '.join(others)} or {last}" if others else last


def _describe_type(kind: inspect.Type, plural: str = "") -> str:
    match kind:
        case inspect.BoolType():
            return "true or false"
        case inspect.IntType():
            return f"{'' if plural else 'a '}whole number{plural}" + _describe_range(kind.ge, kind.le)
        case inspect.FloatType():
            return "a number" + _describe_range(kind.ge, kind.le)
        case _:
            return "text" + plural


def _describe_range(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f" from {low} to {high}"


def _from_toml(text: str, source: str) -> Iterator[tuple[str, _Given]]:
    for section, table in _loads(text, source).items():
        if section not in SECTIONS:
            near = get_close_matches(section, SECTIONS, n=1) or _keys_named(section)
            raise ConfigError(f"{source}: {_bare(section)}: unknown section, {_hint(near, SECTIONS)}")
        if not isinstance(table, dict):
            raise ConfigError(f"{source}: {section}: found {_kind(table)}, expected a table [{section}]")
        for name, value in table.items():
            key = f"{section}.{name}"
            if key not in KEYS:
                hint = _hint(_near_keys(section, name), _names(section))
                raise ConfigError(f"{source}: {section}.{_bare(name)}: unknown key, {hint}")
            yield key, _Given(value, source)


def _loads(text: str, source: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        reason = str(error).replace("at end of document", f"at line {text.count(chr(10)) + 1}, the end of the file")
        raise ConfigError(f"{source}: not valid TOML: {reason}") from None
    except (ValueError, RecursionError):
        raise ConfigError(f"{source}: not valid TOML: a number is too long or lists are nested too deep") from None


def _from_environ(environ: Mapping[str, str]) -> Iterator[tuple[str, _Given]]:
    for variable in sorted(environ):
        section, _, name = variable.removeprefix(_PREFIX).partition("_")
        is_ours = variable.startswith(_PREFIX) and section == section.upper() and section.lower() in SECTIONS
        if not is_ours or not name:
            continue
        key = f"{section}.{name}".lower()
        if key not in KEYS or name != name.upper():
            near = _near_keys(section.lower(), name.lower())
            hint = _hint(map(_variable, near), [_variable(f"{section}.{known}") for known in _names(section.lower())])
            raise ConfigError(f"environment: {_bare(variable)}: unknown variable, {hint}")
        where = f"environment variable {variable}"
        yield key, _Given(_from_text(key, environ[variable], where), where)


def _from_text(key: str, text: str, where: str) -> Any:
    """A variable's text as the type the key has; the value's range is checked with all others."""
    match KEYS[key].type:
        case inspect.BoolType() if text in ("true", "false"):
            return text == "true"
        case inspect.IntType() if re.fullmatch(r"-?[0-9]{1,18}", text, re.ASCII):
            return int(text)
        case inspect.FloatType() if re.fullmatch(r"-?[0-9]{1,18}", text, re.ASCII):
            return int(text)
        case inspect.FloatType() if re.fullmatch(r"-?[0-9]{1,18}\.[0-9]{1,18}", text, re.ASCII):
            return float(text)
        case inspect.VarTupleType() | inspect.DictType():
            return _from_json(key, text, where)
        case inspect.StrType() | inspect.LiteralType():
            return text
    raise _refusal(key, text, where)


def _from_json(key: str, text: str, where: str) -> Any:
    try:
        return msgspec.json.decode(text.encode())
    except (ValueError, RecursionError):
        raise _refusal(key, text, where, ", as JSON") from None


def _checked(key: str, value: Any, where: str) -> Any:
    """The value if it has the type, the range and the choices of its key; whole numbers stay `int`."""
    try:
        converted = msgspec.convert(value, KEYS[key].annotation)
    except (msgspec.ValidationError, OverflowError):
        raise _refusal(key, value, where) from None
    if not all(_is_plain(text, KEYS[key].has_lines) for text in _parts(converted)):
        raise ConfigError(f"{where}: {key}: found control characters or bytes that are not UTF-8, expected plain text")
    return value if isinstance(value, int) else converted


def _parts(value: Any) -> Iterable[Any]:
    match value:
        case tuple():
            return value
        case dict():
            return value.values()
        case _:
            return (value,)


def _is_plain(value: Any, has_lines: bool) -> bool:
    if not isinstance(value, str):
        return True
    signs = value.translate(_LINES) if has_lines else value
    return all(unicodedata.category(sign) not in ("Cc", "Cs") for sign in signs)


def _refusal(key: str, value: Any, where: str, form: str = "") -> ConfigError:
    return ConfigError(f"{where}: {key}: found {_found(key, value)}, expected {describe(key)}{form}")


def _found(key: str, value: Any) -> str:
    if KEYS[key].is_secret:
        return f"{_kind(value)} (not shown)"
    return quote(mask_url(value) if isinstance(value, str) else value)


def _kind(value: Any) -> str:
    kinds = {str: "a text", bool: "a boolean", int: "a number", float: "a number", list: "a list", dict: "a table"}
    return kinds.get(type(value), "a date or time")


def _near_keys(section: str, name: str) -> list[str]:
    """The key that was probably meant: one of the section, or one of that name elsewhere."""
    near = get_close_matches(name, _names(section), n=1)
    return [f"{section}.{other}" for other in near] or _keys_named(name)


def _keys_named(name: str) -> list[str]:
    return [key for key in KEYS if key.endswith(f".{name}")]


def _hint(near: Iterable[str], known: Iterable[str]) -> str:
    meant = next(iter(near), None)
    return f"did you mean {meant}?" if meant else f"expected one of {', '.join(known)}"


def _variable(key: str) -> str:
    return _PREFIX + key.upper().replace(".", "_", 1)


def _bare(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]{1,60}", name) else quote(name)


def _names(section: str) -> list[str]:
    return [key.partition(".")[2] for key in KEYS if key.startswith(f"{section}.")]


def _masked(key: str, value: Any) -> Any:
    if KEYS[key].is_secret and value:
        return "***" if isinstance(value, str) else ["***"] * len(value)
    return mask_url(value) if key in schema.URL_FORMS else value


def _entry(key: str) -> list[str]:
    known, name = KEYS[key], key.partition(".")[2]
    value = describe(key)
    notes = f"{value[0].upper()}{value[1:]}; default {quote(known.default)}."
    if schema.ANY in schema.NOT_YET.get(key, ()):
        notes += " Changing it is not available in this version."
    elif key in schema.NOT_YET and key not in schema.URL_FORMS:
        refused = " and ".join(quote(word) for word in schema.NOT_YET[key])
        notes += f" Not available in this version: {refused}."
    return [*_comment(known.about), *_comment(notes), f"{name} = {quote(known.default)}"]


def _comment(text: str) -> list[str]:
    return textwrap.wrap(text, 110, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)


if __name__ == "__main__":
    print(reference(), end="")
