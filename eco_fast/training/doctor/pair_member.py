"""One of the two processes of `pair`: `python -m eco_fast.training.doctor.pair_member gloo|nccl SECONDS`."""

import signal
import sys

import torch
import torch.distributed as dist

from eco_fast.utils import distributed

SIZE = 1 << 20  # numbers


def main() -> None:
    """Add up a tensor over all ranks, and gather an object; ends itself by SIGALRM when the time is over."""
    by, seconds = sys.argv[1], int(sys.argv[2])
    signal.alarm(seconds)
    with distributed.process_group(seconds):
        rank, world_size = distributed.rank(), distributed.world_size()
        device = f"cuda:{rank}" if by == "nccl" else "cpu"
        if by == "nccl":
            torch.cuda.set_device(device)
        numbers = torch.full((SIZE,), rank + 1.0, device=device)
        dist.all_reduce(numbers)
        if not bool((numbers == world_size * (world_size + 1) / 2).all()) or distributed.all_gather(rank) != [0, 1]:
            raise RuntimeError(f"rank {rank}: wrong sums")


if __name__ == "__main__":
    main()
