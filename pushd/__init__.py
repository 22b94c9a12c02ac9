"""pushd: a self-hosted notification daemon. See README.md for use and ARCHITECTURE.md for structure."""

__version__ = "0.1.0"
