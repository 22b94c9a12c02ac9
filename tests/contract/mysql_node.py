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


class MysqlNode(Node):
    """The table has the names that the configuration has by default."""

    server: MariadbServer

    def sections(self) -> dict[str, Any]:
        return {"directory": DirectoryConfig(url=self.server.url)}

    async def begin(self) -> None:
        self.server = shared_server()
        self.server.execute(TABLE)

    async def end(self) -> None:
        self.server.revive()
        self.server.drop_database()

    def fill_directory(self, users: list[User]) -> None:
        self.server.insert(FILL, [(user.user_id, user.username, user.role) for user in users])
