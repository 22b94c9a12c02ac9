"""The port and what is spoken on it: HTTP/1.1, WebSocket, credentials, the API."""
