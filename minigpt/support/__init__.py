"""What everything else leans on: errors, checks of arguments, memory, files."""
