"""A configuration becomes one run, or many."""
