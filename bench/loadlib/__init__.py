"""The parts of the load tool (`bench/load.py`)."""
