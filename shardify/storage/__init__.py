"""Files, folders and object stores: read ranges, write atomically, read ahead."""
