"""Files that last: they appear whole or not at all, have one writer, stay within bounds, and are known by their content."""
