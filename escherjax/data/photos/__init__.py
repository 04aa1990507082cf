"""Pictures as networks see them: reading, cutting out objects, windows of the image plane."""
