"""A notice's way from its publisher to the sockets and back: accepted, queued, sent, acknowledged."""
