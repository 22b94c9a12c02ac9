"""The directory of a node that has none: whoever has been connected since the start."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from pushd.model import User


class NoDirectory:
    """ports.Directory in memory; it knows whom it learned, with the newest name and role of each one's token."""

    follows_tokens = True

    def __init__(self) -> None:
        self._users: dict[int, User] = {}

    async def users(self, user_ids: Collection[int]) -> dict[int, User]:
        """See ports.Directory."""
        return {user_id: self._users[user_id] for user_id in user_ids if user_id in self._users}

    async def all_ids(self) -> list[int]:
        """See ports.Directory."""
        return sorted(self._users)

    async def ids_by_role(self, roles: Collection[int]) -> list[int]:
        """See ports.Directory."""
        return sorted(user.user_id for user in self._users.values() if user.role in roles)

    async def learn(self, users: Sequence[User]) -> None:
        """See ports.Directory."""
        self._users.update((user.user_id, user) for user in users)
