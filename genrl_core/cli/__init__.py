"""The command ``genrl``."""
