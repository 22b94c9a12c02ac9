"""Who is asking: tokens, API keys, origins."""
