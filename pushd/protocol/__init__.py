"""What goes over a WebSocket, without I/O: frames, compression, one connection's state."""
