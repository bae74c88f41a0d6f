"""Command lines: each reads its arguments, then imports the work."""
