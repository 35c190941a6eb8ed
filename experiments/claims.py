"""What the paper says of an ablation, held against the records: a sentence below the ablation's table.

conf/experiment/<name>.yaml lists them under ``claims``: what is claimed, the two settings that it compares, and the
PSNR by which the first should at least be ahead.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from eval.statistics import paired_difference
from experiments.collect import described, finished
from experiments.errors import BadInput
from experiments.job import Job
from experiments.records import Record
from experiments.reuse_curve import PSNR_CAP_DB


@dataclass(frozen=True)
class Claim:
    """That one setting's videos are nearer to the baseline's than another's.

    Attributes:
        text: what is claimed, and by whom.
        of, against: the two settings: ``method`` and as many options, by dotted name, as tell them from the others.
        above_db: PSNR of the one less that of the other is at least this; negative for a small loss.
    """

    text: str
    of: dict[str, Any]
    against: dict[str, Any]
    above_db: float = 0.0

    def verdict(self, jobs: Sequence[Job]) -> str:
        """The claim, the difference over the prompts that both settings have, and whether it bears the claim out."""
        ours, theirs = (_by_prompt(the_one(jobs, options)) for options in (self.of, self.against))
        prompts = sorted(ours.keys() & theirs.keys())
        if len(prompts) < 2:
            return f"{self.text} Not tested here: fewer than two prompts have both videos"
        pairs = [(ours[prompt], theirs[prompt]) for prompt in prompts]
        difference, low, high = paired_difference(*zip(*((_psnr_db(a), _psnr_db(b)) for a, b in pairs), strict=True))
        if low > self.above_db:
            outcome = "Holds here"
        elif high < self.above_db:
            outcome = "GOES AGAINST THE CLAIM here"
        else:
            outcome = "Neither borne out nor contradicted here"
        expected = f"; claimed {self.above_db:+.2f} dB or more" if self.above_db else ""
        compute = sum(a.flops for a, _ in pairs) / sum(b.flops for _, b in pairs)
        return (
            f"{self.text} {outcome}: {difference:+.2f} dB PSNR ({low:+.2f} to {high:+.2f}, paired, n {len(prompts)}"
            f"{expected}), at {compute:.2f} of the other's compute"
        )


def notes(claims: Iterable[dict[str, Any]], jobs: Sequence[Job]) -> tuple[str, ...]:
    """A sentence a claim of an experiment file. Raises BadInput for settings that the experiment does not have."""
    return tuple(Claim(**claim).verdict(jobs) for claim in claims)


def the_one(jobs: Iterable[Job], options: dict[str, Any]) -> Job:
    """The job with these options. Raises BadInput unless there is just one."""
    named = [job for job in jobs if options.items() <= described(job).items()]
    if len(named) != 1:
        raise BadInput(f"a claim about {options} fits {len(named)} of the experiment's settings; name just one")
    return named[0]


def _by_prompt(job: Job) -> dict[str, Record]:
    return {record.prompt: record for record in finished(job) if "psnr" in record.metrics}


def _psnr_db(record: Record) -> float:
    return min(PSNR_CAP_DB, float(record.metrics["psnr"]))
