"""What is kept in Redis: mailboxes, and which tokens are revoked."""

from pushd.stores.redis.mailbox import RedisMailbox, open_mailbox
from pushd.stores.redis.revocations import RedisRevocations, open_revocations

__all__ = ["RedisMailbox", "RedisRevocations", "open_mailbox", "open_revocations"]
