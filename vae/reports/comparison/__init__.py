"""The page that puts runs next to each other."""
