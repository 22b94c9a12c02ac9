"""Users: the cached directory, files to import them from, and the devices they connect with."""
