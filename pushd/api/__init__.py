"""The HTTP API: one table of endpoints, and by subject what each takes, gives and does."""
