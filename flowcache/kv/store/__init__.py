"""How precisely the cache keeps keys and values: stores, one a file."""
