"""The mean loss between two reports, summed where the losses are."""

from collections.abc import Mapping

import torch
from torch import Tensor


class LossSums:
    """Sums over the accepted steps since the last report; nothing waits for the device until the mean is asked for.

    Attributes:
        loss: float64 [], on the device.
        accepted: int64 [], likewise: how many steps.
    """

    def __init__(self, device: str) -> None:
        self.loss = torch.zeros((), dtype=torch.float64, device=device)
        self.accepted = torch.zeros((), dtype=torch.int64, device=device)

    def add(self, loss: Tensor, skip: Tensor) -> None:
        """Count one step: its loss (float32 []) unless it was skipped (bool [])."""
        self.loss += torch.where(skip, 0.0, loss)
        self.accepted += ~skip

    def mean(self) -> float | None:
        """The mean loss, or None where no step was accepted; waits for the device."""
        count = int(self.accepted.item())
        return self.loss.item() / count if count else None

    def reset(self) -> None:
        """Begin anew."""
        self.loss.zero_()
        self.accepted.zero_()

    def state_dict(self) -> dict[str, Tensor]:
        """The sums."""
        return {"loss_sum": self.loss, "accepted": self.accepted}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue the sums."""
        self.loss.copy_(state["loss_sum"])
        self.accepted.copy_(state["accepted"])
