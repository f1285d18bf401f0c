"""What attention remembers of the tokens it has seen."""
