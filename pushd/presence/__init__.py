"""Who is connected: arrivals with hello and mailbox replay, heartbeats, departures."""
