"""What was asked for and what it took: counted as it happens, added up when asked."""
