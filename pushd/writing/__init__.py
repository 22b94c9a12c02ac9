"""Writes to the stores that nobody waits for, what is set aside of them, and the purge of what is past its time."""
