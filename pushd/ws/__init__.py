"""A WebSocket connection after its handshake: admitted, read, understood."""
