"""Whether a record's metrics were measured by today's code; of what was not, a table shows nothing."""

from __future__ import annotations

from dataclasses import replace

from experiments.records.code import code_hash
from experiments.records.record import Record

MODULES = {
    "psnr": "eval.psnr",
    "psnr_frame": "eval.psnr",
    "ssim": "eval.ssim",
    "ssim_skimage": "eval.ssim",
    "lpips": "eval.lpips",
    "lpips_vgg": "eval.lpips",
    "caption": "eval.caption_score",
    "flow_jump": "eval.flow_jump",
    "latent_snr": "eval.latent_error",
}
_MEASURED_OTHERWISE = "measured by other code than today's; the run.py command that made the video measures it again"


def metric_code(name: str) -> str:
    """The hash of a metric's code as it is today."""
    return code_hash([MODULES[name]])


def is_current(record: Record, name: str) -> bool:
    """Whether a metric, or that there is none, was found by today's code."""
    return record.metrics_code.get(name) == metric_code(name)


def current(record: Record) -> Record:
    """A record without the metrics that other code measured: they are None, and its notes say why."""
    stale = [name for name in record.metrics_code if name in MODULES and not is_current(record, name)]
    if not stale:
        return record
    return replace(
        record,
        metrics={name: None if name in stale else value for name, value in record.metrics.items()},
        notes=record.notes | dict.fromkeys(stale, _MEASURED_OTHERWISE),
        caption=None if "caption" in stale else record.caption,
    )
