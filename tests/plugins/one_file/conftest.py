"""Not part of the distribution: its tests run where it is installed, not here."""

collect_ignore = ["test_centred.py"]
