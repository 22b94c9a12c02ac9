"""What is written to the stores without being waited for, and what has had its time."""
