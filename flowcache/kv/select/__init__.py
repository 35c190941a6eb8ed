"""Which keys a cache over its budget keeps: selectors, one a file."""
