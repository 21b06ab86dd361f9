"""Files, processes, images and error messages, shared by all other packages."""
