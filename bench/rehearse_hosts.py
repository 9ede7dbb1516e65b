"""Several machines, rehearsed on one: torchrun over network namespaces, each with its own name, processes and memory.

    python -m bench.rehearse_hosts [SCENARIO ...]       as root; without names: all of them

A host is a network namespace with an address on one virtual switch, and processes with names, numbers, mounts and a
/dev/shm of their own; what they share is a folder, or nothing. The ranks compute on the CPU and speak gloo. Where
something happens to a host, all ranks are held before the same step until it has. Ends with exit status 1 where a
scenario did not end as it must.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from eco_fast.data.folders import builtin_images
from eco_fast.data.images import read_image, write_png
from eco_fast.training.run_folder import read_rows
from tests.helpers import wait_until

STEPS, HELD = 50, 25
TIMEOUT = 60  # train.timeout where a link is cut
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

loop.TrainStep = Step
sys.exit(main(sys.argv[1:]))
"""
BOOT = """
hostname "$1"; mount -t tmpfs tmpfs /dev/shm; mount --bind "$2" /etc/hosts; mount --bind "$3" "$4"
mount --bind "$5" "$6"; cd "$7"; shift 7; exec "$@"
"""
UNSHARE = ["unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-ec"]
RENDEZVOUS = "--rdzv-backend c10d --rdzv-id eco --rdzv-endpoint 10.77.0.1"
HANGS = 1200.0  # seconds after which something hangs


def ip(*words: str) -> None:
    """One command of iproute2."""
    subprocess.run(["ip", *words], check=True)


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
        rendezvous = (
            f"--nnodes {hosts} --nproc-per-node {ranks} --rdzv-backend c10d --rdzv-id eco --rdzv-endpoint {FIRST}"
        )
        torchrun = ["torch.distributed.run", *rendezvous.split(), "--", "script.py", "train", "recipe.toml", *words]
        net = self.net
        folders = (net.names, net.shared, net.here, self.own, net.local, net.here if shared else net.local)
        boot = [*UNSHARE, BOOT, "boot", self.name, *map(str, folders), sys.executable, "-m", *torchrun]
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

    def slow(self) -> str:
        """Slow what it sends; says how."""
        for how in ("netem delay 20ms rate 10mbit", "tbf rate 10mbit burst 16kbit latency 400ms"):
            command = ["ip", "netns", "exec", self.space, "tc", "qdisc", "add", "dev", "eth0", "root", *how.split()]
            if subprocess.run(command, capture_output=True, check=False).returncode == 0:
                return how
        raise SystemExit("this kernel knows neither netem nor tbf")


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
        wait_until(lambda: len(list(self.held.iterdir())) == 4)
        yield
        (self.held / "go").touch()

    def close(self) -> None:
        """Leave nothing of it."""
        for host in self.hosts:
            host.lose()
        for space in (*(host.space for host in self.hosts), self.space):
            subprocess.run(["ip", "netns", "delete", space], check=False)


def rows(run: Path) -> list[float]:
    return [row["loss"] for row in read_rows(run) if "loss" in row]


class Rehearsal:
    """The scenarios; each says what happened.

    Args:
        net: of four hosts.
    """

    def __init__(self, net: Net) -> None:
        self.net = net
        assert net.run(1, 4, "--run", "one") == [0], net.hosts[0].said()

    def same(self, run: str) -> str:
        """How near a run came to that of one host.

        Raises:
            AssertionError: its losses are others.
        """
        one, other = (self.net.shared / name for name in ("one", run))
        wanted, got = rows(one), rows(other)
        assert len(got) == len(wanted) == STEPS, f"{len(got)} rows"
        apart = max(abs(a - b) / abs(a) for a, b in zip(wanted, got, strict=True))
        assert apart <= 1e-5, f"losses up to {apart:.1e} apart"
        weights = [(folder / "checkpoints/last.safetensors").read_bytes() for folder in (one, other)]
        return "the same bits as one host" if weights[0] == weights[1] else f"losses within {apart:.0e} of one host's"

    def together(self, count: int, ranks: int, run: str) -> str:
        """So many hosts train to the end."""
        codes = self.net.run(count, ranks, "--run", run)
        assert codes == [0] * count, "\n".join(host.said() for host in self.net.hosts[:count])
        return self.same(run)

    def slow(self) -> str:
        """One host's link is slow."""
        how = self.net.hosts[1].slow()
        return f"{how}: {self.together(2, 2, 'slow')}"

    def lost(self, which: int) -> str:
        """All processes of a host are killed, and the job is queued again."""
        run = f"lost-{which}"
        with self.net.held_run("--run", run):
            self.net.hosts[which].lose()
        return f"{self.named([1 - which])}; {self.again(run)}"

    def cut(self) -> str:
        """The link between two hosts is cut, and the job is queued again on mended ones."""
        with self.net.held_run("--run", "cut", "--train.timeout", str(TIMEOUT)):
            self.net.hosts[1].cut()
        words = self.named([0, 1])
        self.net.hosts[1].mend()
        return f"{words}; {self.again('cut', '--train.timeout', str(TIMEOUT))}"

    def named(self, hosts: Sequence[int]) -> str:
        """How and when these hosts ended since all ranks were let go; each must name a cause."""
        began, ends = time.monotonic(), []
        for number in hosts:
            host = self.net.hosts[number]
            code, took = host.end(), time.monotonic() - began
            sentences = sorted(set(re.findall(r"rank \d+ stopped[^\n]*", host.said())))
            assert code != 0, f"{host.name} ended as if nothing had happened"
            assert sentences, host.said()
            ends.append(f"{host.name} after {took:.0f} s: {'; '.join(sentences)}")
        return " | ".join(ends)

    def again(self, run: str, *words: str) -> str:
        """Queue a job again."""
        shutil.rmtree(self.net.held)
        self.net.held.mkdir()
        codes = self.net.run(2, 2, "--run", run, "--resume", *words)
        logs = [host.said() for host in self.net.hosts[:2]]
        assert codes == [0, 0], "\n".join(logs)
        at = re.findall(r"continues at step \d+", logs[0] + logs[1])
        return f"queued again, it {at[0]} and ends in {self.same(run)}"

    def apart(self) -> str:
        """No folder is shared."""
        codes = self.net.run(2, 2, "--run", "apart", shared=False)
        logs = [host.said() for host in self.net.hosts[:2]]
        return f"exit codes {codes}: " + " | ".join(
            "; ".join(re.findall(r"eco-fast: [^\n]*", log)) or log[-2000:] for log in logs
        )

    def own_stores(self) -> str:
        """The run folder is shared, each host has a store of its own."""
        codes = self.net.run(2, 2, "--run", "stores", "--data.store", str(self.net.local / "store"))
        assert codes == [0, 0], "\n".join(host.said() for host in self.net.hosts[:2])
        assert all((host.own / "store/manifest.json").is_file() for host in self.net.hosts[:2])
        return self.same("stores")


def scenarios(play: Rehearsal) -> dict[str, Callable[[], str]]:
    """By name."""
    return {
        "two hosts of two ranks": lambda: play.together(2, 2, "two"),
        "four hosts of one rank": lambda: play.together(4, 1, "four"),
        "host of the last ranks killed": lambda: play.lost(1),
        "host of the first ranks killed": lambda: play.lost(0),
        "link cut": play.cut,
        "link slow": play.slow,
        "no shared folder": play.apart,
        "a store on each host": play.own_stores,
    }


def main(wanted: Sequence[str]) -> int:
    """Rehearse; returns how many scenarios did not end as they must."""
    wrong = 0
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        net = Net(Path(name), 4)
        stack.callback(net.close)
        play = Rehearsal(net)
        print("| scenario | what happened |\n|---|---|", flush=True)
        for title, scenario in scenarios(play).items():
            if wanted and title not in wanted:
                continue
            try:
                told = scenario()
            except AssertionError as error:
                wrong, told = wrong + 1, f"WRONG: {error}"
            print(f"| {title} | {told} |", flush=True)
    return wrong


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]) > 0)
