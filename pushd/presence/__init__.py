"""Who is connected: arrivals with mailbox replay, departures, heartbeats."""
