"""SkyReels-V2's transformer in its pipeline, where chunks attend block-causally: only those that compute run, with a
cache of keys and values. The network and the cache are the suite's own, over the pipeline's weights.

Shape letters: B videos, C latent channels, f x h x w latent frames, rows and columns of the window, b a chunk's frames.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.hooks.hooks import BaseState, CacheContext, ModelHook, StateManager
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor

from flowcache.integrations.diffusers.session import Session, schedule_of
from flowcache.models.skyreels.config import Sampling
from flowcache.models.skyreels.generation import SkyReelsGeneration
from flowcache.models.skyreels.network import SkyReelsNetwork
from flowcache.models.wan.network import TimeTable
from flowcache.reuse.base import Decision
from flowcache.schedule import Row, Schedule, Window
from flowcache.trace import Work


class ShownLatents:
    """The latents that the pipeline shows its transformer, in the place of
    ``flowcache.models.skyreels.window.WindowLatents``: the pipeline itself takes the steps."""

    def __init__(self, window: Window, block: int, device: torch.device) -> None:
        self.window, self._block = window, block
        self.latents: Tensor | None = None
        self._places = torch.arange(window.num_chunks * block, device=device)

    def frames(self, chunk: int) -> slice:
        first = (chunk - self.window.first_chunk) * self._block
        return slice(first, first + self._block)

    def shown(self, chunk: int) -> Tensor:
        return self.latents[:, :, self.frames(chunk)]

    def times(self, row: Row, chunk: int) -> Tensor:
        """Places of the chunk's frames in the row's table of times, int64 [b]: the pipeline gives a time for each."""
        return self._places[self.frames(chunk)]

    def clean_times(self, chunk: int) -> Tensor:
        return self._places[self.frames(chunk)]

    def begin(self, row: Row) -> None:
        """Steps are the pipeline's."""


class BranchGeneration(SkyReelsGeneration):
    """One guidance branch of one window.

    Args:
        session: its schedule and method.
        features: [1, L, text channels], of the branch.
        latents: [1, C, f, h, w], for their shape.
    """

    def __init__(self, network: SkyReelsNetwork, session: Session, features: Tensor, latents: Tensor) -> None:
        schedule, block = schedule_of(session), session.windows.frames_a_chunk
        shape = latents.shape
        noise = [latents.new_zeros(*shape[:2], window.num_chunks * block, *shape[3:]) for window in schedule.windows]
        super().__init__(network, _sampling(schedule, block), schedule, session.method, [features], noise)
        self._captions = [network.caption(features)]
        self._open(len(schedule.windows) - 1)

    def run(
        self, row: Row, decision: Decision, index: int, latents: Tensor, table: TimeTable
    ) -> tuple[dict[int, Tensor], list[Work]]:
        """Velocities [1, C, b, h, w] of the chunks that take a step, as far as the branch makes them, and the work."""
        self.show(row, latents, table)
        work: list[Work] = []
        velocities = self._run(self.branches[0], self._captions[0], row, decision, index, work)
        for chunk in row.finished:
            self._finish_chunk(chunk, last_reader=self.window.chunks[-1])
        return velocities, work

    def show(self, row: Row, latents: Tensor, table: TimeTable) -> None:
        """What a row begins with; ``table`` are its frames' times."""
        self._row, self._table, self.state.latents = row, table, latents

    def _open(self, index: int) -> None:
        super()._open(index)
        self.state = ShownLatents(self.schedule.windows[index], self.sampling.causal_block_size, self.network.device)

    def _hand_over(self, following: Window) -> None:
        """Given frames are the pipeline's."""


class ChunkState(BaseState):
    """Of a guidance branch, by diffusers' cache context."""

    def __init__(self) -> None:
        self.generation: BranchGeneration | None = None
        self.schedule: Schedule | None = None

    def reset(self) -> None:
        self.generation = self.schedule = None


class ChunkHook(ModelHook):
    """In the place of the transformer's forward where it is block-causal; elsewhere that runs.

    Args:
        session: shared with the hooks on blocks and the scheduler.
    """

    _is_stateful = True

    def __init__(self, session: Session) -> None:
        super().__init__()
        self.session, self.states = session, StateManager(ChunkState)
        self._network: SkyReelsNetwork | None = None
        self._row: Row | None = None
        self._table: TimeTable | None = None

    def new_forward(self, module: torch.nn.Module, *args: Any, **options: Any) -> Any:
        if module.config.num_frame_per_block == 1:
            return self.fn_ref.original_forward(*args, **options)
        return self._forward(module, *args, **options)

    def reset_state(self, module: torch.nn.Module) -> torch.nn.Module:
        """The pipeline is done, and calls this."""
        self.session.end()
        self.states.reset()
        self._row = self._table = None
        return module

    def _forward(
        self,
        module: torch.nn.Module,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        encoder_hidden_states_image: Tensor | None = None,
        enable_diffusion_forcing: bool = False,
        fps: Any = None,
        return_dict: bool = True,
        attention_kwargs: dict[str, Any] | None = None,
    ) -> Any:
        _check_call(hidden_states, timestep, encoder_hidden_states_image, attention_kwargs)
        if self.states._context is None:
            self.states.set_context(CacheContext("inference"))
        session, name = self.session, self.states.context.name
        session.open_alone(name, hidden_states.shape[2], module.config.num_frame_per_block)
        schedule = schedule_of(session)
        state, index = self.states.get_state(), session.branch(name)
        if self._network is None:
            self._network = SkyReelsNetwork(module)
        if state.schedule is not schedule:
            state.generation = None  # its cache goes before the next one comes
            state.generation = BranchGeneration(self._network, session, encoder_hidden_states, hidden_states)
            state.schedule = schedule
        generation = state.generation
        if index == 0:
            self._row = session.next_row()
            # On a GPU one look a window: it waits for the device.
            if not timestep.is_cuda or self._row.index == schedule.windows[-1].rows[0]:
                _check_times(self._row, schedule, timestep[0], session.windows.frames_a_chunk)
            rate = 24 if fps is None or int(torch.as_tensor(fps).flatten()[0]) else 16  # the pipeline's index of it
            self._table = self._network.time_table(timestep[0], rate)
            generation.show(self._row, hidden_states, self._table)
            session.decide(generation)
        velocities, work = generation.run(self._row, session.decision, index, hidden_states, self._table)
        session.did(work)
        session.forecast_from = max(session.forecast_from, generation.forecast_from)
        session.compressions = max(session.compressions, generation.kv_compressions)
        output = hidden_states.new_zeros(hidden_states.shape, dtype=torch.float32)
        for chunk, velocity in velocities.items():
            output[:, :, generation.state.frames(chunk)] = velocity
        return Transformer2DModelOutput(sample=output) if return_dict else (output,)


def _sampling(schedule: Schedule, block: int) -> Sampling:
    """What a generation asks of the settings; times, levels and steps are the pipeline's."""
    longest = max(window.num_chunks for window in schedule.windows)
    whole = Sampling(causal_block_size=block, base_num_frames=4 * (block - 1) + 1, overlap_history=4 * (block - 1) + 1)
    frames = whole.frames_of(longest)
    return whole.replaced({"num_steps": schedule.num_steps, "base_num_frames": frames, "guidance_scale": 1.0})


def _check_call(latents: Tensor, timestep: Tensor, image: Tensor | None, attention_options: Any) -> None:
    if latents.shape[0] != 1:
        raise ValueError(
            f"{latents.shape[0]} videos at once, and FlowCache on chunks makes one: each decides for itself what it "
            "computes; call the pipeline once a video (num_videos_per_prompt=1, one prompt)"
        )
    if timestep.ndim != 2 or timestep.shape[1] != latents.shape[2]:
        raise ValueError(
            f"timesteps {list(timestep.shape)} are not one a latent frame of {list(latents.shape)}, as the "
            "diffusion-forcing pipelines give them; remove FlowCache for other calls of the transformer"
        )
    if image is not None or attention_options:
        raise ValueError("FlowCache on chunks takes neither image embeddings nor attention_kwargs; leave them out")


def _check_times(row: Row, schedule: Schedule, times: Tensor, block: int) -> None:
    """Refuse frames that are not at the steps of the row: then the pipeline runs otherwise than it said."""
    first, given = schedule.windows[-1].first_chunk, times.tolist()
    frames = schedule.windows[-1].num_chunks * block
    for step in row.steps:
        last = (step.chunk - first + 1) * block - 1
        if len(given) != frames or given[last] != step.t:
            raise ValueError(
                f"the transformer is called with {len(given)} frames at times {given}, and in row {row.index} chunk "
                f"{step.chunk} of a window of {frames} should be at {step.t}; call it by the pipeline that FlowCache "
                "is applied to"
            )
