"""Files that last: written whole, locked, cached within bounds, known by their content."""
