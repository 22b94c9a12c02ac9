"""What the operator sees of a running daemon: metrics, health, log, service manager."""
