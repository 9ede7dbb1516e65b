"""Several machines, rehearsed on one: torchrun of `eco-fast train` over the hosts of `hosts.py`, on CPUs, with gloo.

    python -m bench.rehearse_hosts [SCENARIO ...]       as root; without names: all of them

Where something happens to a host, all ranks are held before the same step until it has. Ends with exit status 1 where a
scenario did not end as it must: with the losses of one host; or with a cause that each host names and, once the job is
queued again, with the losses of one host.
"""

import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from bench.hosts import RANKS, STEPS, Host, Net, why_not
from eco_fast.training.run_folder import read_rows
from tests.helpers import wait_until

TIMEOUT = 60  # train.timeout where a link is cut
CAUSES = re.compile(r"rank \d+ stopped[^\n]*")


def causes(host: Host) -> list[str]:
    """What its ranks say of why they stopped, each sentence once."""
    return sorted(set(CAUSES.findall(host.said())))


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
        with self.net.hosts[1].slowed() as how:
            return f"{how}: {self.together(2, 2, 'slow')}"

    def terminated(self) -> str:
        """The cluster takes both hosts back, and the job is queued again."""
        with self.net.held_run("--run", "terminated"):
            for host in self.net.hosts[:2]:
                host.terminate()
            wait_until(lambda: len(list(self.net.held.glob("*-heard"))) == RANKS)
        codes = [host.end() for host in self.net.hosts[:2]]
        said = "".join(host.said() for host in self.net.hosts[:2])
        assert all(codes), codes
        assert said.count("eco-fast: interrupted; go on with --resume") == RANKS, said
        return f"torchrun ends with {codes}, all ranks after the same step; {self.again('terminated')}"

    def lost(self, which: int) -> str:
        """All processes of a host are killed, and the job is queued again."""
        run = f"lost-{which}"
        with self.net.held_run("--run", run):
            self.net.hosts[which].lose()
        return f"{self.named([1 - which])}; {self.again(run)}"

    def cut(self) -> str:
        """The link between two hosts is cut. The ranks name it; then the cluster ends the job, and queues it again."""
        timeout = ("--train.timeout", str(TIMEOUT))
        with self.net.held_run("--run", "cut", *timeout):
            self.net.hosts[1].cut()
        began, told = time.monotonic(), []
        for host in self.net.hosts[:2]:
            wait_until(lambda host=host: len(CAUSES.findall(host.said())) >= 2)  # type: ignore[misc]
            told.append(f"{host.name} after {time.monotonic() - began:.0f} s: {'; '.join(causes(host))}")
        waiting = [host.name for host in self.net.hosts[:2] if host.process is not None and host.process.poll() is None]
        for host in self.net.hosts[:2]:
            host.lose()
        self.net.hosts[1].mend()
        told.append(f"torchrun still waits on {', '.join(waiting) or 'no host'} then")
        return f"{' | '.join(told)}; {self.again('cut', *timeout)}"

    def named(self, hosts: Sequence[int]) -> str:
        """How and when these hosts ended since all ranks were let go; each must name a cause."""
        began, ends = time.monotonic(), []
        for number in hosts:
            host = self.net.hosts[number]
            code, took = host.end(), time.monotonic() - began
            assert code != 0, f"{host.name} ended as if nothing had happened"
            assert causes(host), host.said()
            ends.append(f"{host.name} after {took:.0f} s: {'; '.join(causes(host))}")
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
        said = "".join(host.said() for host in self.net.hosts[:2])
        refusals = sorted(set(re.findall(r"eco-fast: [^\n]*", said)))
        assert all(codes), codes
        assert refusals, said
        assert not list(self.net.place.glob("*/apart/checkpoints")), "it was trained"
        return f"torchrun ends with {codes}: {'; '.join(refusals)}"

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
        "SIGTERM on both hosts": play.terminated,
        "link cut": play.cut,
        "link slow": play.slow,
        "no shared folder": play.apart,
        "a store on each host": play.own_stores,
    }


def main(wanted: Sequence[str]) -> int:
    """Rehearse; returns how many scenarios did not end as they must."""
    wrong = 0
    if reason := why_not():
        raise SystemExit(f"hosts cannot be rehearsed here: {reason}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # no host is left behind
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
