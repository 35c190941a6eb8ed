"""Muon for matrices, AdamW for the rest, over a few data-parallel processes on one machine.

One thread a process and gloo between them: small models spend longer in thread barriers than in arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn


def orthogonalise(update: Tensor, num_iterations: int = 5) -> Tensor:
    """The nearest semi-orthogonal matrix to ``update`` [m, n], by Newton-Schulz iteration in float32.

    Source of the method and its coefficients: K. Jordan, "Muon", 2024. torch.optim.Muon iterates in bfloat16, which
    processors without bfloat16 arithmetic emulate a hundred times slower.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = update if update.shape[0] <= update.shape[1] else update.T
    x = x / (x.norm() + 1e-7)
    for _ in range(num_iterations):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if update.shape[0] <= update.shape[1] else x.T


class Optimiser:
    """One step of Muon (matrices of the blocks) and AdamW (everything else) on gradients averaged over processes.

    A convolution's weight is a matrix from its inputs, all taps together, to its outputs.

    Args:
        model: its parameters are trained.
        muon_in: prefixes of parameter names whose matrices Muon takes.
        muon_lr, adam_lr: peak learning rates.
        num_steps, warmup_steps, decay_fraction: linear warm-up, then constant, then linear to 0 over the last fraction.
        max_norm: gradients are clipped to this norm.
    """

    def __init__(
        self,
        model: nn.Module,
        muon_in: Iterable[str],
        muon_lr: float,
        adam_lr: float,
        num_steps: int,
        warmup_steps: int = 50,
        decay_fraction: float = 0.6,
        max_norm: float = 1.0,
    ) -> None:
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        prefixes = tuple(muon_in)
        self.matrices = [p for name, p in named if _is_matrix(p) and name.startswith(prefixes)]
        taken = {id(p) for p in self.matrices}
        rest = [p for _, p in named if id(p) not in taken]
        self.parameters = [p for _, p in named]
        self.momenta = [torch.zeros_like(p) for p in self.matrices]
        self.adam = torch.optim.AdamW(rest, lr=adam_lr, betas=(0.9, 0.98), weight_decay=0.0)
        self.muon_lr, self.adam_lr, self.max_norm = muon_lr, adam_lr, max_norm
        self.num_steps, self.warmup_steps, self.decay_fraction = num_steps, warmup_steps, decay_fraction
        self.step_count = 0

    def lr_factor(self) -> float:
        done = self.step_count / self.num_steps
        return min(1.0, (self.step_count + 1) / self.warmup_steps, (1.0 - done) / self.decay_fraction)

    @torch.no_grad()
    def step(self, loss: Tensor) -> None:
        """Back-propagate and update. Every process must call it, with its own loss."""
        for p in self.parameters:
            p.grad = None
        with torch.enable_grad():
            loss.backward()
        for p in self.parameters:  # a parameter that this batch did not touch still takes part in the average
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        _sum_over_processes([p.grad for p in self.parameters], scale=1 / _num_processes())
        nn.utils.clip_grad_norm_(self.parameters, self.max_norm)
        factor = self.lr_factor()
        for group in self.adam.param_groups:
            group["lr"] = self.adam_lr * factor
        self.adam.step()
        self._muon_step(self.muon_lr * factor)
        self.step_count += 1

    def _muon_step(self, lr: float, beta: float = 0.95) -> None:
        rank, num_processes = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        updates = []
        for index, (p, momentum) in enumerate(zip(self.matrices, self.momenta, strict=True)):
            momentum.lerp_(p.grad, 1 - beta)
            if index % num_processes == rank:
                update = orthogonalise(torch.lerp(p.grad, momentum, beta).flatten(1))
                # Scaled so that one learning rate suits all shapes: updates have the RMS of Adam's.
                updates.append((update * (0.2 * max(update.shape) ** 0.5)).view_as(p))
            else:
                updates.append(torch.zeros_like(p))
        _sum_over_processes(updates)
        for p, update in zip(self.matrices, updates, strict=True):
            p.sub_(update, alpha=lr)

    def state_dict(self) -> dict:
        return {"step_count": self.step_count, "adam": self.adam.state_dict(), "momenta": self.momenta}

    def load_state_dict(self, state: dict) -> None:
        self.step_count = state["step_count"]
        self.adam.load_state_dict(state["adam"])
        for momentum, saved in zip(self.momenta, state["momenta"], strict=True):
            momentum.copy_(saved)


def _is_matrix(p: Tensor) -> bool:
    """Not a vector, nor one with axes of length 1 beside it, as norms and tables have."""
    return p.ndim >= 2 and min(p.flatten(1).shape) > 1


def _num_processes() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def _sum_over_processes(tensors: list[Tensor], scale: float = 1.0) -> None:
    """Sum the tensors over all processes in one message, in place."""
    if _num_processes() == 1:
        return
    flat = torch.cat([t.flatten() for t in tensors])
    dist.all_reduce(flat)
    offset = 0
    for t in tensors:
        t.copy_(flat[offset : offset + t.numel()].view_as(t)).mul_(scale)
        offset += t.numel()
