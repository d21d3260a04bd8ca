"""Which configuration is best: one searcher per file."""
