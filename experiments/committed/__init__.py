"""All that is committed of results: which command makes which file, how far that is, and whether all is of one code."""
