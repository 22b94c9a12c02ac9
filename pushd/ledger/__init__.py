"""The ledger: what became of every notice for every recipient, each fact once, in columns."""
