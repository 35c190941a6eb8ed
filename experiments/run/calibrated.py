"""What a method's parts were calibrated on must be what they run on."""

from __future__ import annotations

from experiments.job.errors import BadInput
from experiments.job.job import Job
from experiments.records.weights import weights_id
from flowcache.calibration import Calibration


def check_calibrations(job: Job) -> None:
    """Refuse calibrations of other weights. Raises BadInput. Random weights have no decisions of their own, so that any
    plan will do to time them."""
    if job.random_weights is not None:
        return
    method = job.method
    for name, part in (("reuse", method.reuse), ("forecast", method.forecast), ("kv", method.kv.select)):
        for option, value in part.options.items():
            if isinstance(value, Calibration) and (made_on := value.provenance.get("weights")) != weights_id(job):
                instead = "kv=full" if name == "kv" else f"{name}.{option}=null"
                raise BadInput(
                    f"{name}.{option}: {value.name} was calibrated on weights {made_on}, and these are "
                    f"{weights_id(job)}; calibrate it on these: python -m experiments.calibrate {value.made_by} "
                    f"model={job.model_name} setting={job.setting_name}, or give {instead}"
                )
