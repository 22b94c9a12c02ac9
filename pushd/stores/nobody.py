"""The directory of a node that has none: whoever has been connected since the start."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from pushd.model import Group, User, UserId


class NoDirectory:
    """ports.Directory in memory; it knows whom it learned, with the name and role of each one's newest token."""

    def __init__(self) -> None:
        self._users: dict[UserId, User] = {}

    async def users(self, user_ids: Collection[UserId]) -> dict[UserId, User]:
        """The known ones of these users."""
        return {
            user_id: User(user_id, known.username, known.role)
            for user_id in user_ids
            if (known := self._users.get(user_id)) is not None
        }

    async def all_ids(self) -> list[UserId]:
        """Every user id, ascending."""
        return sorted(self._users)

    async def ids_by_role(self, roles: Collection[int]) -> list[UserId]:
        """Ids of users that have one of these roles, ascending."""
        return sorted(user.user_id for user in self._users.values() if user.role in roles)

    async def ids_by_group(self, groups: Collection[str]) -> list[UserId]:
        """Nobody: tokens name no groups."""
        return []

    async def groups(self, limit: int) -> list[Group]:
        """None."""
        return []

    async def learn(self, claims: Sequence[User]) -> set[UserId]:
        """Take over what tokens say of their users; ids of those who are new or changed."""
        changed: set[UserId] = set()
        for said in claims:
            known = self._users.get(said.user_id)
            told = said.after(known)
            if told is not None:
                self._users[said.user_id] = told
                if not told.is_as(known):
                    changed.add(said.user_id)
        return changed
