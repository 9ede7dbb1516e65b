"""Machines on one machine: network namespaces with a name, an address, processes and a /dev/shm of their own each.

What they share is a switch, and a folder or nothing. Each can start torchrun, with eco-fast's `train` on a tiny recipe,
whose ranks can be held before one step; lose all its processes; and have its link cut or slowed.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from eco_fast.data.folders import builtin_images
from eco_fast.data.images import read_image, write_png
from tests.helpers import wait_until

STEPS, HELD = 50, 25
RANKS = 4
RECIPE = f"""
[data]
train = ["hr"]
patch = 8
loader = "plain"
[model]
features = 8
blocks = 1
[objective]
name = "vanilla"
[optimizer]
learning_rate = 1e-4
[train]
steps = {STEPS}
batch_size = 8
log_every = 1
checkpoint_every = 10
device = "cpu"
compile = false
trackers = []
"""
SCRIPT = f"""
import os, sys, time
from pathlib import Path
import torch
from eco_fast.cli.main import main
from eco_fast.training import loop

torch.set_num_threads(1)

class Step(loop.TrainStep):
    def __call__(self, batch):
        if batch.step == {HELD} and "HOLD" in os.environ:
            Path(os.environ["HOLD"], os.environ["RANK"]).touch()
            while not Path(os.environ["HOLD"], "go").exists():
                time.sleep(0.01)
        return super().__call__(batch)

class Stop(loop.StopSignal):
    def _note(self, *given):
        super()._note(*given)
        Path(os.environ["HOLD"], os.environ["RANK"] + "-heard").touch()

loop.TrainStep, loop.StopSignal = Step, Stop
sys.exit(main(sys.argv[1:]))
"""
BOOT = """
hostname "$1"; mount -t tmpfs tmpfs /dev/shm; mount --bind "$2" /etc/hosts; mount --bind "$3" "$4"
mount --bind "$5" "$6"; cd "$7"; shift 7; exec "$@"
"""
UNSHARE = ["unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"]
RENDEZVOUS = "--rdzv-backend c10d --rdzv-id eco --rdzv-endpoint 10.77.0.1"
HANGS = 1200.0  # seconds after which something hangs


def ip(*words: str) -> None:
    """One command of iproute2."""
    subprocess.run(["ip", *words], check=True)


def why_not() -> str:
    """What the rehearsal lacks on this machine, or nothing."""
    if os.geteuid():
        return "it needs root"
    probe = [*UNSHARE, "--net", "ip", "link", "add", "probe", "type", "bridge"]
    try:
        tried = subprocess.run(probe, capture_output=True, text=True, check=False)
    except OSError as error:
        return str(error)
    return tried.stderr.strip()


class Host:
    """A machine of the rehearsal.

    Args:
        net: what it is part of.
        number: its own, from 1.
    """

    def __init__(self, net: "Net", number: int) -> None:
        self.net, self.number, self.name = net, number, f"host-{number}"
        self.space, self.port = f"{net.space}-{number}", f"port-{number}"
        self.own = net.place / self.name
        self.own.mkdir()
        ip("netns", "add", self.space)
        ip("link", "add", self.port, "netns", net.space, "type", "veth", "peer", "name", "eth0", "netns", self.space)
        ip("-n", net.space, "link", "set", self.port, "master", "switch", "up")
        ip("-n", self.space, "address", "add", f"10.77.0.{number}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            ip("-n", self.space, "link", "set", device, "up")
        self.log = net.place / f"{self.name}.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, hosts: int, ranks: int, *words: str, hold: bool = False, shared: bool = True) -> None:
        """Let torchrun start its ranks of so many hosts: all held at one step; and in a folder that all see, or not."""
        rendezvous = f"--nnodes {hosts} --nproc-per-node {ranks} {RENDEZVOUS}"
        torchrun = ["torch.distributed.run", *rendezvous.split(), "--", "script.py", "train", "recipe.toml", *words]
        net = self.net
        folders = (net.names, net.shared, net.here, self.own, net.local, net.here if shared else net.local)
        boot = [*UNSHARE, "sh", "-ec", BOOT, "boot", self.name, *map(str, folders), sys.executable, "-m", *torchrun]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
        if hold:
            environment["HOLD"] = str(net.held)
        with self.log.open("wb") as log:
            command = ["ip", "netns", "exec", self.space, *boot]
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)

    def end(self) -> int:
        """Wait for its torchrun; the exit code."""
        assert self.process is not None
        return self.process.wait(HANGS)

    def said(self) -> str:
        """What its ranks and torchrun have said."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def lose(self) -> None:
        """SIGKILL for all of its processes at once."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def cut(self) -> None:
        """Nothing reaches it any more, and nobody is told."""
        ip("-n", self.net.space, "link", "set", self.port, "down")

    def mend(self) -> None:
        """The opposite of `cut`."""
        ip("-n", self.net.space, "link", "set", self.port, "up")

    @contextmanager
    def slowed(self) -> Iterator[str]:
        """Slow what it sends, while the block runs; gives how."""
        device = ["ip", "netns", "exec", self.space, "tc", "qdisc", "replace", "dev", "eth0", "root"]
        for how in ("netem delay 20ms rate 10mbit", "tbf rate 10mbit burst 16kbit latency 400ms"):
            if subprocess.run([*device, *how.split()], capture_output=True, check=False).returncode == 0:
                break
        else:
            raise AssertionError("this kernel knows neither netem nor tbf")
        yield how
        subprocess.run([*device, "pfifo"], check=True)

    def terminate(self) -> None:
        """SIGTERM for torchrun, as from a cluster."""
        assert self.process is not None
        inside = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text(encoding="ascii")
        os.kill(int(inside), signal.SIGTERM)


class Net:
    """So many hosts on one switch, and their files: `here` is what they share, `local` is of each its own.

    Args:
        place: an empty folder.
        count: of hosts.
    """

    def __init__(self, place: Path, count: int) -> None:
        self.place, self.space, self.names = place, f"eco-{os.getpid()}", place / "names"
        self.shared, self.here, self.local, self.held = (place / one for one in ("shared", "here", "local", "held"))
        for folder in (self.shared, self.here, self.local, self.held):
            folder.mkdir()
        lines = ["127.0.0.1 localhost", *(f"10.77.0.{number} host-{number}" for number in range(1, count + 1))]
        self.names.write_text("\n".join(lines) + "\n", encoding="ascii")
        ip("netns", "add", self.space)
        ip("-n", self.space, "link", "add", "switch", "type", "bridge")
        ip("-n", self.space, "link", "set", "switch", "up")
        self.hosts: list[Host] = []
        photo = read_image(dict(builtin_images("train"))["builtin/rocket.jpg"])
        for number in range(1, count + 1):
            self.hosts.append(Host(self, number))
        for folder in (self.shared, *(host.own for host in self.hosts)):
            for index, side in enumerate((40, 60, 90)):
                write_png(folder / "hr" / f"{index}.png", photo[100 : 100 + side, 150 : 150 + side])
            (folder / "recipe.toml").write_text(RECIPE, encoding="utf-8")
            (folder / "script.py").write_text(SCRIPT, encoding="utf-8")

    def run(self, count: int, ranks: int, *words: str, shared: bool = True) -> list[int]:
        """Let the first hosts train together, to the end; their exit codes."""
        for host in self.hosts[:count]:
            host.start(count, ranks, *words, shared=shared)
        return [host.end() for host in self.hosts[:count]]

    @contextmanager
    def held_run(self, *words: str) -> Iterator[None]:
        """Two hosts of two ranks, held before one step while the block runs; then they go on."""
        for host in self.hosts[:2]:
            host.start(2, 2, *words, hold=True)
        processes = [host.process for host in self.hosts if host.process is not None]
        wait_until(lambda: len(list(self.held.iterdir())) == RANKS or processes[0].poll() is not None)
        assert processes[0].poll() is None, self.hosts[0].said()
        yield
        (self.held / "go").touch()

    def close(self) -> None:
        """Leave nothing of it."""
        for host in self.hosts:
            host.lose()
        for space in (*(host.space for host in self.hosts), self.space):
            subprocess.run(["ip", "netns", "delete", space], check=False)
