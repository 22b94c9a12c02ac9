"""The configuration: its schema, TOML and environment, and what is in force."""
