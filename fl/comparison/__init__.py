"""One model in several precisions: converted, measured, reported, verified."""
