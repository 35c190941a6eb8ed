"""When a chunk computes: reuse policies, one a file. They see numbers only, never tensors or models."""
