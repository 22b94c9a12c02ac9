"""The directory in MySQL or MariaDB: a table of a database that belongs to others and is only ever read.

`directory.url` is `mysql://user:password@host:port/database?option=value&...`, every part percent-encoded where it has
to be; the port is 3306 when nothing is said. Options:

    charset       the connection's character set; utf8mb4
    ssl           true: TLS or nothing, the server's certificate is checked; false
    ssl_ca        file with the certificates of the authorities to trust, instead of the system's
    ssl_cert      file with a client certificate, perhaps with its key
    ssl_key       file with the key
    ssl_verify    false: TLS with whatever certificate the server shows

An `ssl_` option means `ssl=true`.
"""

from __future__ import annotations

import getpass
import os

try:
    getpass.getuser()
except (KeyError, OSError):
    # A uid without a name, as in many containers. aiomysql asks for it when it is imported, for connections that name
    # no user, and does not expect what Python raises from 3.13 on.
    os.environ["LOGNAME"] = "unknown"

from pushd.stores.mysql.directory import MysqlDirectory, open_directory

__all__ = ["MysqlDirectory", "open_directory"]
