"""The summary of many runs."""
