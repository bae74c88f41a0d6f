"""What every room needs and none is about: errors, files, names, records, console."""
