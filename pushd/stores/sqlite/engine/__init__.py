"""How the database file is opened, written by one thread, read by others, and kept in shape."""
