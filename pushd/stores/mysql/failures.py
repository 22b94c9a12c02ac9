"""What MySQL's errors mean to the rest of pushd, and which ones only people can mend."""

from __future__ import annotations

import ssl

from pymysql.constants import CR, ER  # type: ignore[import-untyped]
from pymysql.err import InterfaceError, MySQLError  # type: ignore[import-untyped]

from pushd.config.schema import DirectoryConfig
from pushd.errors import StartError, StoreError, StoreLost, StoreUnavailable

STORE = "directory"

_KILLED = {1927, 4031}  # ER_CONNECTION_KILLED of MariaDB, ER_CLIENT_INTERACTION_TIMEOUT of MySQL
_LOST = _KILLED | {
    CR.CR_CONNECTION_ERROR,
    CR.CR_CONN_HOST_ERROR,
    CR.CR_UNKNOWN_HOST,
    CR.CR_SERVER_GONE_ERROR,
    CR.CR_SERVER_LOST,
    CR.CR_COMMANDS_OUT_OF_SYNC,
    CR.CR_SERVER_LOST_EXTENDED,
}

# What can only be changed by people, by the server's number for it: the key to look at, and what was expected there.
_CREDENTIALS = ("directory.url", "the name and password of a user who may connect from here")
_DATABASE = ("directory.url", "a database that the user may read")
_TABLE = ("directory.table", "a table or view that the user of directory.url may read")
_COLUMN = ("directory.{column}", "a column of the table that the user of directory.url may read")
_TLS = ("directory.url", "a server with TLS, as its options ask for")
_MISCONFIGURED: dict[int, tuple[str, str]] = {
    ER.ACCESS_DENIED_ERROR: _CREDENTIALS,
    1698: _CREDENTIALS,  # the same, for a user without password
    ER.HOST_NOT_PRIVILEGED: _CREDENTIALS,
    1862: _CREDENTIALS,  # ER_MUST_CHANGE_PASSWORD_LOGIN, for which the driver has a name since 1.2.4
    ER.DBACCESS_DENIED_ERROR: _DATABASE,
    ER.BAD_DB_ERROR: _DATABASE,
    ER.NO_SUCH_TABLE: _TABLE,
    ER.WRONG_TABLE_NAME: _TABLE,
    ER.TABLEACCESS_DENIED_ERROR: _TABLE,
    ER.VIEW_INVALID: _TABLE,
    ER.BAD_FIELD_ERROR: _COLUMN,
    ER.COLUMNACCESS_DENIED_ERROR: _COLUMN,
    CR.CR_SSL_CONNECTION_ERROR: _TLS,
}


def translate(error: Exception) -> StoreError | None:
    """guard.Translate. Whatever else goes wrong in the driver means that it did not understand the answer."""
    text = _text(error)
    code = _code(error)
    if isinstance(error, OSError | InterfaceError) or code in _LOST:
        return StoreLost(STORE, text)
    if isinstance(error, MySQLError) and code == 0:
        return StoreLost(STORE, text)
    return StoreUnavailable(STORE, text)


def _code(error: BaseException | None) -> int:
    """The server's or the driver's number for it, or 0."""
    if isinstance(error, MySQLError) and error.args and isinstance(error.args[0], int):
        return int(error.args[0])
    return 0


def _text(error: BaseException) -> str:
    """One line."""
    causes = [error, error.__cause__] if isinstance(error.__cause__, OSError) else [error]
    texts = [str(cause.args[1] if _code(cause) and len(cause.args) > 1 else cause) for cause in causes]
    return " ".join(": ".join(text or repr(error) for text in texts).split())


def misconfiguration(cause: BaseException | None, config: DirectoryConfig) -> StartError | None:
    """What the operator must change, if it is that."""
    if cause is None:
        return None
    code = CR.CR_SSL_CONNECTION_ERROR if isinstance(cause.__cause__, ssl.SSLCertVerificationError) else _code(cause)
    if code not in _MISCONFIGURED:
        return None
    key, expected = _MISCONFIGURED[code]
    text = _text(cause)
    return StartError(f"{key.format(column=_column_in(text, config))}: {text}; expected {expected}")


# What makes a query useless for as long as it, the tables or the rights are what they are.
_UNUSABLE_QUERY = {
    ER.PARSE_ERROR,
    ER.EMPTY_QUERY,
    ER.BAD_FIELD_ERROR,
    ER.NO_SUCH_TABLE,
    ER.WRONG_TABLE_NAME,
    ER.WRONG_COLUMN_NAME,
    ER.BAD_DB_ERROR,
    ER.NO_DB_ERROR,
    ER.DBACCESS_DENIED_ERROR,
    ER.TABLEACCESS_DENIED_ERROR,
    ER.COLUMNACCESS_DENIED_ERROR,
    ER.PROCACCESS_DENIED_ERROR,
    ER.SPECIFIC_ACCESS_DENIED_ERROR,
    ER.VIEW_INVALID,
    ER.DUP_FIELDNAME,
    ER.NONUNIQ_TABLE,
    ER.NON_UNIQ_ERROR,
    ER.UNKNOWN_TABLE,
    ER.SP_DOES_NOT_EXIST,
    ER.WRONG_NUMBER_OF_COLUMNS_IN_SELECT,
    ER.OPERAND_COLUMNS,
    ER.CANT_AGGREGATE_2COLLATIONS,
    ER.CANT_AGGREGATE_NCOLLATIONS,
    ER.INVALID_GROUP_FUNC_USE,
    ER.WRONG_USAGE,
    1582,  # ER_WRONG_PARAMCOUNT_TO_NATIVE_FCT
    1792,  # ER_CANT_EXECUTE_IN_READ_ONLY_TRANSACTION
}


def groups_misconfiguration(cause: BaseException | None) -> StartError | None:
    """What the operator must change, if it is the query for groups."""
    if _code(cause) not in _UNUSABLE_QUERY:
        return None
    assert cause is not None  # noqa: S101 - for the type checker
    return StartError(
        f"directory.groups_query: {_text(cause)}; expected a SELECT that returns group, user_id[, title], "
        "and that the user of directory.url may run"
    )


def is_of_another_charset(cause: BaseException | None) -> bool:
    """Whether a text was compared with a column whose character set has it not."""
    return _code(cause) in {ER.CANT_AGGREGATE_2COLLATIONS}


def _column_in(text: str, config: DirectoryConfig) -> str:
    """Which of the configured columns the server complains about."""
    for key in ("id_column", "name_column", "role_column"):
        if f"'{getattr(config, key)}'" in text:
            return key
    return "id_column"
