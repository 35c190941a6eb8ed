"""What the paper says of an ablation, held against the records: a sentence below the ablation's table.

conf/experiment/<name>.yaml lists them under ``claims``: what is claimed, the two settings that it compares, and by how
much the first should at least be ahead.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from eval.statistics import paired_difference
from experiments.job.errors import BadInput
from experiments.job.job import Job
from experiments.records import Record
from experiments.records.collect import described, finished
from experiments.show.reuse_curve import PSNR_CAP_DB

# Unit, form, and whether more (1) or less (-1) of it is nearer to the baseline's video.
_METRICS = {"psnr": (" dB PSNR", "+.2f", 1), "ssim": (" SSIM", "+.4f", 1), "lpips": (" LPIPS", "+.4f", -1)}
_METRICS |= {"latent_snr": (" dB of the latents", "+.2f", 1)}


@dataclass(frozen=True)
class Claim:
    """That one setting's videos are nearer to the baseline's than another's.

    Attributes:
        text: what is claimed, and by whom.
        of, against: the two settings: ``method`` and as many options, by dotted name, as tell them from the others.
        metric: psnr, ssim, lpips or latent_snr.
        ahead: by this much at least, in the metric's unit; negative for a small loss.
    """

    text: str
    of: dict[str, Any]
    against: dict[str, Any]
    metric: str = "psnr"
    ahead: float = 0.0

    def verdict(self, jobs: Sequence[Job]) -> str:
        """The claim, the difference over the prompts that both settings have, and whether it bears the claim out."""
        unit, form, sign = _METRICS[self.metric]
        ours, theirs = (_by_prompt(the_one(jobs, options), self.metric) for options in (self.of, self.against))
        prompts = sorted(ours.keys() & theirs.keys())
        if not prompts:
            return f"{self.text} Not tested here: no prompt has both videos"
        pairs = [(ours[prompt], theirs[prompt]) for prompt in prompts]
        values = zip(*((self._value(a), self._value(b)) for a, b in pairs), strict=True)
        difference, *ends = paired_difference(*values)
        worst, best = sorted(sign * end for end in ends)  # nan for few prompts
        if math.isnan(worst):
            outcome = "Too few prompts to tell here"
        elif worst > self.ahead:
            outcome = "Holds here"
        elif best < self.ahead:
            outcome = "GOES AGAINST THE CLAIM here"
        else:
            outcome = "Neither borne out nor contradicted here"
        interval = "" if math.isnan(worst) else f"{ends[0]:{form}} to {ends[1]:{form}}, "
        claimed = f"; claimed {sign * self.ahead:{form}} or better" if self.ahead else ""
        compute = sum(a.flops for a, _ in pairs) / sum(b.flops for _, b in pairs)
        return (
            f"{self.text} {outcome}: {difference:{form}}{unit} ({interval}paired, "
            f"n {len(prompts)}{claimed}), at {compute:.2f} of the other's compute"
        )

    def _value(self, record: Record) -> float:
        value = float(record.metrics[self.metric])
        return min(PSNR_CAP_DB, value) if self.metric == "psnr" else value


def notes(claims: Iterable[dict[str, Any]], jobs: Sequence[Job]) -> tuple[str, ...]:
    """A sentence a claim of an experiment file. Raises BadInput for settings that the experiment does not have."""
    return tuple(Claim(**claim).verdict(jobs) for claim in claims)


def the_one(jobs: Iterable[Job], options: dict[str, Any]) -> Job:
    """The job with these options. Raises BadInput unless there is just one."""
    named = [job for job in jobs if options.items() <= described(job).items()]
    if len(named) != 1:
        raise BadInput(f"a claim about {options} fits {len(named)} of the experiment's settings; name just one")
    return named[0]


def _by_prompt(job: Job, metric: str) -> dict[str, Record]:
    return {record.prompt: record for record in finished(job) if record.metrics.get(metric) is not None}
