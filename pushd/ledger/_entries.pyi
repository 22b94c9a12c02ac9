# For other extensions: see _entries.pxd.
