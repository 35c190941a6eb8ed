"""What a method's parts were calibrated on must be what they run on."""

from __future__ import annotations

from experiments.job.errors import BadInput
from experiments.job.job import Job
from experiments.records.weights import weights_id
from flowcache.reuse.calibration import Calibration


def check_calibrations(job: Job) -> None:
    """Refuse calibrations of other weights. Raises BadInput. Random weights have no decisions of their own, so that any
    plan will do to time them."""
    if job.random_weights is not None:
        return
    for name in ("reuse", "forecast"):
        for option, value in getattr(job.method, name).options.items():
            if isinstance(value, Calibration) and (made_on := value.provenance.get("weights")) != weights_id(job):
                raise BadInput(
                    f"{name}.{option}: {value.name} was calibrated on weights {made_on}, and these are "
                    f"{weights_id(job)}; calibrate it on these: python -m experiments.calibrate reuse={value.part} "
                    f"model={job.model_name} setting={job.setting_name}, or give {name}.{option}=null"
                )
