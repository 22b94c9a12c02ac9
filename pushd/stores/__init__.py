"""Where things are kept. One module per database; nothing else names a driver."""
