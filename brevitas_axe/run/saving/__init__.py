"""Results in folders: `save` writes one, `load` gives the same integers and proves them again."""
