"""A node whose directory is in MariaDB."""

from __future__ import annotations

from typing import Any

from pushd.config.schema import DirectoryConfig
from pushd.model import User
from tests.mariadb import MariadbServer, shared_server

from .conftest import Node

TABLE = "CREATE TABLE user (id BIGINT PRIMARY KEY, username VARCHAR(64), user_type INT, KEY (user_type))"
FILL = (
    "INSERT INTO user VALUES (%s, %s, %s) "
    "ON DUPLICATE KEY UPDATE username = VALUES(username), user_type = VALUES(user_type)"
)

GROUPS_TABLE = "CREATE TABLE membership (grp VARCHAR(64), title VARCHAR(64), user_id BIGINT, KEY (grp, user_id))"
GROUPS_QUERY = "SELECT grp AS `group`, user_id, title FROM membership WHERE title NOT LIKE '100%s'  -- as people see it"


class MysqlNode(Node):
    """The tables have the names that the configuration has by default."""

    server: MariadbServer

    def sections(self) -> dict[str, Any]:
        return {"directory": DirectoryConfig(url=self.server.url, groups_query=GROUPS_QUERY)}

    async def begin(self) -> None:
        self.server = shared_server()
        self.server.execute(TABLE)
        self.server.execute(GROUPS_TABLE)

    async def end(self) -> None:
        self.server.revive()
        self.server.drop_database()

    def fill_directory(self, users: list[User]) -> None:
        self.server.insert(FILL, [(user.user_id, user.username, user.role) for user in users])

    def fill_groups(self, groups: dict[str, tuple[str, list[int]]]) -> None:
        for name in groups:
            self.server.execute("DELETE FROM membership WHERE grp = BINARY %s", name)
        rows = [(name, title, user_id) for name, (title, user_ids) in groups.items() for user_id in user_ids]
        self.server.insert("INSERT INTO membership VALUES (%s, %s, %s)", rows)
