"""Who exists: the cached directory, files of users, and what they connect with."""
