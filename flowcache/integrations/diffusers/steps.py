"""A scheduler's step that forecasts: for quantities that all guidance branches make together, and for corrections.

The scheduler is the only one in a pipeline that sees them together, with the latent as it is. SkyReels-V2's pipeline
keeps a copy of its scheduler for every latent frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from flowcache.forecast.history import OutputHistory
from flowcache.integrations.diffusers.session import Session
from flowcache.schedule import ChunkStep


class ForecastStep:
    """In the place of ``scheduler.step``, of one scheduler; copies of that take copies of this along.

    Args:
        scheduler: on a flow: its estimate of the clean latent is the latent less its level times the model's output.
        session: says which step a frame takes, and whether it computes.
    """

    def __init__(self, scheduler: Any, session: Session, frame: int = 0) -> None:
        self.scheduler, self.session, self.frame = scheduler, session, frame
        self._history: OutputHistory | None = None
        self._seen: object = None

    def __deepcopy__(self, memo: dict[int, Any]) -> ForecastStep:
        made = ForecastStep(memo[id(self.scheduler)], self.session)
        self.session.stepped.append(made)
        return made

    def __call__(self, model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **options: Any) -> Any:
        """As of the scheduler."""
        current = self.session.step_of(self.frame)
        if current is None:
            return self._own(model_output, timestep, sample, *args, **options)
        step, computes, repeats = current
        history = self._history_of(step)
        if computes:
            output = self._output(step, model_output, sample)
            history.update(step, output, sample)
            if (shown := history.take_report()) is not None:
                self.session.showed(step.chunk, shown[1][0])
            if (corrected := history.take_corrected(step.chunk)) is not None:
                sample = self._take_again(*corrected)
                model_output = self._model_output(step, output, sample)
                self.session.corrections += 1
        else:
            if history.opens_gap(step.chunk):
                state = self._state(sample)
                history.open_gap(step.chunk, state, sample.nbytes)
            output = history.predict(step, repeat=repeats)
            self.session.forecast_from = max(self.session.forecast_from, history.forecast_from)
            model_output = self._model_output(step, output, sample)
        return self._own(model_output, timestep, sample, *args, **options)

    def _own(self, *args: Any, **options: Any) -> Any:
        return type(self.scheduler).step(self.scheduler, *args, **options)

    def _history_of(self, step: ChunkStep) -> OutputHistory:
        """Of the current window."""
        session = self.session
        if self._history is None or self._seen is not session.schedule:
            self._seen = session.schedule
            method = session.method
            self._history = OutputHistory(method.forecast.fresh(), method.reuse.report, session.schedule.jumps)
        return self._history

    def _output(self, step: ChunkStep, model_output: Tensor, sample: Tensor) -> Tensor:
        """What is forecast, of the model's output; for the history to keep."""
        if self.session.quantity == "velocity":
            return model_output.clone()
        return sample - self.scheduler.sigmas[step.step] * model_output

    def _model_output(self, step: ChunkStep, output: Tensor, sample: Tensor) -> Tensor:
        if self.session.quantity == "velocity":
            return output
        return (sample - output) / self.scheduler.sigmas[step.step]

    def _take_again(self, state: tuple[dict[str, Any], Tensor], skipped: Sequence[tuple[ChunkStep, Tensor]]) -> Tensor:
        """Go back to a state and take the steps since with other estimates: the latent that they lead to."""
        options, sample = state
        vars(self.scheduler).update(options)
        for step, output in skipped:
            time = self.scheduler.timesteps[step.step]
            sample = self._own(self._model_output(step, output, sample), time, sample, return_dict=False)[0]
        return sample

    def _state(self, sample: Tensor) -> tuple[dict[str, Any], Tensor]:
        """The scheduler's own state and the latent, as they are now: pipelines write over what both look at."""
        return {name: _kept(value) for name, value in vars(self.scheduler).items() if name != "step"}, sample.clone()


def _kept(value: Any) -> Any:
    if isinstance(value, list):
        return [_kept(each) for each in value]
    return value.clone() if isinstance(value, Tensor) else value
