"""What redis-py's exceptions mean to the rest of pushd.

Nobody answered: StoreLost. The server answered that it cannot serve now, or not us: StoreUnavailable, because an
operator or time changes that, and giving a batch up would take notices out of the order they belong in. Everything
else (a command the server does not know, a script that fails) is a StoreError: repeating it would block for ever.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from redis import exceptions

from pushd.errors import StoreError, StoreLost, StoreUnavailable

# What a server says to those it does not let in: wrong credentials, missing rights, a database it does not have.
_REFUSED_TEXT = (
    r"NOAUTH|WRONGPASS|NOPERM|user executing the script|DB index is out of range|SELECT is not allowed in cluster mode"
)
_REFUSED = re.compile(rf"\b({_REFUSED_TEXT})\b")
_ARGUMENTS = re.compile(r",? with args beginning with.*", re.DOTALL)
# Servers before 7 hide the code of an error inside a script in the text of another.
_LATER = re.compile(
    r"\b(LOADING|READONLY|OOM|BUSY|MASTERDOWN|CLUSTERDOWN|TRYAGAIN|MISCONF|NOREPLICAS|NOSCRIPT|MOVED|ASK|CROSSSLOT"
    r"|UNKILLABLE|UNBLOCKED|REDIRECT|DENIED|INPROG|NOGOODSLAVE|NOMASTERLINK|max number of clients reached"
    rf"|(?:no )?upstream (?:host|failure|disconnected)|{_REFUSED_TEXT})\b"
)
_LATER_TYPES = (
    exceptions.BusyLoadingError,
    exceptions.MaxConnectionsError,
    exceptions.ReadOnlyError,
    exceptions.OutOfMemoryError,
    exceptions.ClusterError,
    exceptions.TryAgainError,
    exceptions.AskError,
    exceptions.ClusterCrossSlotError,
    exceptions.NoScriptError,
    exceptions.AuthenticationError,
    exceptions.AuthorizationError,
    exceptions.NoPermissionError,
    exceptions.SlotNotCoveredError,
)
_LOST_TYPES = (exceptions.ConnectionError, exceptions.TimeoutError, exceptions.RedisClusterException, OSError)
_REFUSED_TYPES = (exceptions.AuthenticationError, exceptions.AuthorizationError, exceptions.NoPermissionError)


def translate(store: str) -> Callable[[Exception], StoreError | None]:
    """What `store` raises for a driver's exception; None for one that is not the driver's."""

    def translated(error: Exception) -> StoreError | None:
        _forget_arguments(error)
        text = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, _LATER_TYPES) or (isinstance(error, exceptions.RedisError) and _LATER.search(text)):
            return StoreUnavailable(store, text)
        if isinstance(error, _LOST_TYPES):
            return StoreLost(store, text)
        return StoreError(store, text) if isinstance(error, exceptions.RedisError) else None

    return translated


def _forget_arguments(error: Exception) -> None:
    """A server that does not know AUTH or HELLO answers with the password; the log shows causes, too."""
    error.args = tuple(_ARGUMENTS.sub("", arg) if isinstance(arg, str) else arg for arg in error.args)


def is_refusal(error: BaseException | None) -> bool:
    """The server does not let us in, or not do what must be done: only the configuration, or an operator, helps."""
    return isinstance(error, _REFUSED_TYPES) or (
        isinstance(error, exceptions.RedisError) and _REFUSED.search(str(error)) is not None
    )
