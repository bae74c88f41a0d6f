"""One model on its way to a device: formats, export, benchmark."""
