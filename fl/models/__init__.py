"""Networks, and how an image becomes their input."""
