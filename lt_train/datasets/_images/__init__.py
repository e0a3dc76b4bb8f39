"""Images in files: reading, decoding, augmenting and checking them. Shared by the dataset kinds; not public."""
