"""What a step takes that does not compute: forecasts of a chunk's output from its last computed ones, one a file."""
