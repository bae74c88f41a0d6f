"""One network learns, and is asked."""
