"""Errors shared by the metrics."""


class MetricUnavailable(RuntimeError):
    """A metric cannot be computed here, e.g. its weights are missing.

    The message says why and which command makes it available. Callers show the metric as n/a with this reason; they
    never replace it by a number.
    """
