"""All writers of a node together: who reads his own writes waits for the writers of what he reads."""
