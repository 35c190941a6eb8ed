"""Metrics of the suite: quality against a reference video, cost, and the video files they are computed on."""
