"""Two processes that exchange tensors, as those of several GPUs do: NCCL between GPUs, gloo otherwise."""

import os
import subprocess
import sys
from contextlib import suppress

import torch

from eco_fast.training.doctor.findings import Check, Fact, Finding, Notes, Subject
from eco_fast.utils.device import pick_device

PATIENCE = 25  # seconds
MEMBER = "eco_fast.training.doctor.pair_member"
OF_TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def checks(_: Subject) -> list[Check]:
    """The one there is."""
    return [torchrun]


def torchrun(subject: Subject) -> Notes:
    """Start two, and let them add up a tensor; their ranks stop by themselves when the time is over."""
    device = pick_device(subject.device)
    by = "nccl" if device != "cpu" and torch.cuda.device_count() > 1 else "gloo"
    yield Fact("by", by)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", MEMBER, by]
    environment = {name: value for name, value in os.environ.items() if name not in OF_TORCHRUN}
    environment.setdefault("OMP_NUM_THREADS", "1")  # torchrun says that it does so
    with subprocess.Popen(
        [*command, str(PATIENCE)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            said, _ = process.communicate(timeout=PATIENCE)
            why = None if process.returncode == 0 else _reason(said)
        except subprocess.TimeoutExpired:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=2)
            process.kill()
            why = f"no answer in {PATIENCE} s"
    if why is not None:
        yield Finding(
            f"two processes cannot exchange tensors by {by} ({why})",
            "training on several GPUs, and torchrun at all, needs it",
            "NCCL_DEBUG=INFO eco-fast doctor; NCCL_P2P_DISABLE=1 where the GPUs cannot reach each other"
            if by == "nccl"
            else "unset GLOO_SOCKET_IFNAME, ip link set lo up, and let /etc/hosts name this machine",
        )


def _reason(said: str) -> str:
    """The line that names the error, of what the processes and torchrun have said."""
    lines = [line.strip() for line in said.splitlines() if "Error" in line]
    named = [line for line in lines if "ChildFailedError" not in line]
    return (named or lines or ["torchrun has failed"])[0][:300]
