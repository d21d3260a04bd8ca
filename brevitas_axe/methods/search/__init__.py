"""Which configuration is best: one searcher per file, pure functions of an objective."""
