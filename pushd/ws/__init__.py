"""WebSocket connections: let in, read from, understood, renewed and closed."""
