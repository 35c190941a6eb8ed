"""The methods in other libraries' pipelines."""
