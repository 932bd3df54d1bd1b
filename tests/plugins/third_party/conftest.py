"""Not part of the distributions: their tests run where these are installed, not here."""

collect_ignore = ["test_stripes.py", "orders"]
