"""Hosts of their own on this machine, for what only several of them show: cut networks, lost power.

A host is a process with namespaces of its own: network, hostname, processes, mounts, shared memory
and Ray's folder. It is plugged into a switch, a bridge in a namespace that only the hosts reach;
nothing touches the network of the machine itself. The namespaces have no names and no files: they
end with the processes in them, which the kernel ends with this one, however it ends.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parents[2]
COMMANDS = dict.fromkeys(("nsenter", "setpriv", "unshare"), "util-linux") | {"ip": "iproute2"}
RAY = Path(sys.executable).with_name("ray")
RAY_FOLDER = Path("/tmp/ray")
PORT = 6379
NETWORK = "10.99.7"
STORE = 100 * 2**20
"""Bytes of a node's object store, the least that Ray takes being 75 MiB."""

START_SECONDS = 120.0
"""How long a cluster may take to start, on a machine that has other things to do."""

INIT = """
import os, signal
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
print("up", flush=True)
while True:
    signal.sigwait({signal.SIGCHLD})
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass
"""
"""The first process of a host: it reaps those that lose their parent."""

NODES = """
import sys, time
import ray
from ray._raylet import GcsClient
gcs = GcsClient(address=sys.argv[1])
while sum(node.state == 0 for node in gcs.get_all_node_info().values()) < int(sys.argv[2]):
    time.sleep(0.1)
"""
"""Waits until a cluster has so many nodes that live."""


def missing() -> str | None:
    """Why no host can be made here, for people; None if one can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "hosts of their own need root on Linux, to make namespaces"
    for command, package in COMMANDS.items():
        if shutil.which(command) is None:
            return f"hosts of their own need the command {command} (package {package})"
    with tempfile.TemporaryDirectory() as folder:
        try:
            with Hosts(Path(folder)) as hosts:
                hosts.add("probe")
        except subprocess.CalledProcessError as error:
            return f"no host can be made here ({(error.stderr or '').strip() or error})"
    return None


def _begin(*namespaces: str) -> subprocess.Popen[str]:
    """A process in namespaces of its own, which does nothing and ends with this one."""
    command = ["setpriv", "--pdeathsig", "KILL", "unshare", *namespaces, sys.executable, "-S", "-c"]
    process = subprocess.Popen(
        [*command, INIT], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    if not process.stdout.readline():
        raise subprocess.CalledProcessError(
            process.wait(), command, stderr=process.communicate()[1]
        )
    return process


def _ip(pid: int, words: str) -> None:
    """Call `ip` in the network of a process."""
    command = ["nsenter", "-t", str(pid), "-n", "ip", *words.split()]
    subprocess.run(command, check=True, capture_output=True, text=True)


class Host:
    """A host, made by `Hosts.add`.

    Attributes:
        name: Its hostname.
        address: Its IP address.
    """

    def __init__(self, name: str, number: int, switch: int, folder: Path, names: Path) -> None:
        self.name = name
        self.address = f"{NETWORK}.{number}"
        self._switch = switch
        self._port = f"port{number}"
        self._folder = folder
        # --kill-child: without the first one, all processes of the host end
        self._outer = _begin(
            *("--mount", "--uts", "--ipc", "--pid", "--net", "--fork", "--kill-child"),
            *("--mount-proc", "--propagation", "private"),
        )
        children = Path(f"/proc/{self._outer.pid}/task/{self._outer.pid}/children")
        self._init = int(children.read_text())
        self._plug_in()
        self._set_up(names)

    def _plug_in(self) -> None:
        _ip(self._switch, f"link add {self._port} type veth peer name eth0 netns {self._init}")
        _ip(self._switch, f"link set {self._port} master switch up")
        for words in (f"addr add {self.address}/24 dev eth0", "link set lo up", "link set eth0 up"):
            _ip(self._init, words)
        # Ray looks for its own address by a route to the internet
        _ip(self._init, f"route add default via {NETWORK}.254")

    def _set_up(self, names: Path) -> None:
        (self._folder / "ray").mkdir(parents=True)
        resolver = self._folder / "resolv.conf"
        resolver.write_text("nameserver 127.0.0.1\n")
        RAY_FOLDER.mkdir(exist_ok=True)
        self.run("hostname", self.name)
        self.run("mount", "-t", "tmpfs", "-o", "size=1g", "tmpfs", "/dev/shm")
        for own, place in (
            (self._folder / "ray", RAY_FOLDER),
            (names, "/etc/hosts"),
            (resolver, "/etc/resolv.conf"),
        ):
            self.run("mount", "--bind", str(own), str(place))

    def start(
        self, *words: str | Path, environment: Mapping[str, str] | None = None, **options: Any
    ) -> subprocess.Popen[str]:
        """Start a command there, with the environment of this process and some of its own."""
        inherited = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        inherited |= {"PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0", "COLUMNS": "200"}
        enter = ["nsenter", "-t", str(self._init), "-m", "-u", "-i", "-n", "-p", f"--wd={ROOT}"]
        return subprocess.Popen(
            [*enter, *map(str, words)],
            env={**inherited, "OMP_NUM_THREADS": "1", **(environment or {})},
            text=True,
            **options,
        )

    def run(
        self, *words: str | Path, environment: Mapping[str, str] | None = None, seconds: float = 60
    ) -> str:
        """What a command prints there.

        Raises:
            subprocess.CalledProcessError: if it fails.
            subprocess.TimeoutExpired: if it takes longer.
        """
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = self.start(*words, environment=environment, **pipes)
        try:
            output, error = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, words, output, error)
        return output

    def log(self, name: str) -> IO[str]:
        """A file of this host for the output of a command."""
        return (self._folder / name).open("a")

    def told(self, name: str) -> str:
        """The end of such a file, with the name of the host."""
        path = self._folder / name
        lines = path.read_text().splitlines()[-3:] if path.is_file() else ["nothing"]
        return "\n".join(f"{self.name}: {line}" for line in lines)

    def cut(self) -> None:
        """Cut it off from all others."""
        _ip(self._switch, f"link set {self._port} down")

    def mend(self) -> None:
        """Connect it again."""
        _ip(self._switch, f"link set {self._port} up")

    def power_off(self) -> None:
        """End all that runs there at once, with no goodbye to the others."""
        # no packet leaves it any more: connections are not closed, they are silent
        self.cut()
        self._outer.kill()
        self._outer.communicate()

    def mount(self, folder: Path, size: str = "16m") -> None:
        """Give it an empty disk of its own in place of a folder."""
        self.run("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder)

    def processes(self, word: str) -> list[int]:
        """Processes there with a word in their command, by their numbers on this machine."""
        here, found = os.readlink(f"/proc/{self._init}/ns/pid"), []
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal():
                try:
                    if os.readlink(entry / "ns/pid") == here and word.encode() in (
                        entry / "cmdline"
                    ).read_bytes().replace(b"\0", b" "):
                        found.append(int(entry.name))
                except OSError:
                    # it has ended meanwhile
                    continue
        return sorted(found)

    def kill(self, word: str) -> None:
        """Kill -9 what `processes` finds, of which there must be some."""
        found = self.processes(word)
        assert found, f"no process of {self.name} has {word!r} in its command"
        for process in found:
            os.kill(process, signal.SIGKILL)


class Hosts:
    """Hosts on one switch, ended with the block.

    Args:
        folder: Where each host keeps files of its own.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._hosts: dict[str, Host] = {}

    def __enter__(self) -> Hosts:
        """Switch the network on."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._names = self._folder / "hosts"
        self._names.write_text("127.0.0.1 localhost\n")
        self._switch = _begin("--net")
        try:
            _ip(self._switch.pid, "link add switch type bridge")
            _ip(self._switch.pid, "link set switch up")
        except BaseException:
            self._switch.kill()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """End all hosts, and the network with them."""
        for host in self._hosts.values():
            host.power_off()
        self._switch.kill()
        self._switch.communicate()

    def __getitem__(self, name: str) -> Host:
        """A host by its name."""
        return self._hosts[name]

    def __iter__(self) -> Iterator[Host]:
        """All hosts."""
        return iter(self._hosts.values())

    def add(self, name: str) -> Host:
        """Make a host; one that has lost its power is made anew, with another address."""
        number = len(self._names.read_text().splitlines())
        with self._names.open("a") as names:
            names.write(f"{NETWORK}.{number} {name}\n")
        folder = self._folder / f"{name}-{number}"
        self._hosts[name] = Host(name, number, self._switch.pid, folder, self._names)
        return self._hosts[name]


class RayOnHosts:
    """A Ray cluster on hosts of their own, with a head that trains nothing.

    Args:
        hosts: The hosts.

    Attributes:
        environment: Its token, for the environment of all that joins it.
    """

    def __init__(self, hosts: Hosts) -> None:
        self.hosts = hosts
        self.environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        self.head = self._begin_head()

    @property
    def address(self) -> str:
        """Where the cluster is joined."""
        return f"{self.head.address}:{PORT}"

    def _begin_head(self) -> Host:
        head = self.hosts.add("head")
        own = ("--head", f"--port={PORT}", "--include-dashboard=false")
        self._ray_start(head, own, cpus=0, gpus=0)
        return head

    def renew_head(self) -> None:
        """Start the head again, on another host: that is another cluster."""
        self.head = self._begin_head()

    def join(
        self, name: str, cpus: int = 1, gpus: int = 0, environment: Mapping[str, str] | None = None
    ) -> Host:
        """Make a host and let it join.

        Args:
            name: Its name.
            cpus: Its CPU cores, as Ray counts them.
            gpus: Its GPUs, as Ray counts them.
            environment: What its processes have besides.
        """
        return self.add_node(self.hosts.add(name), cpus, gpus, environment)

    def add_node(
        self, host: Host, cpus: int = 1, gpus: int = 0, environment: Mapping[str, str] | None = None
    ) -> Host:
        """Let a host join that is there."""
        own = (f"--address={self.address}",)
        self._ray_start(host, own, cpus, gpus, environment)
        return host

    def wait_for_nodes(self, number: int) -> None:
        """Wait until it has so many nodes.

        Raises:
            TimeoutError: if it does not come to have them.
        """
        try:
            self.head.run(
                *(sys.executable, "-c", NODES, self.address, str(number)),
                environment=self.environment,
                seconds=START_SECONDS,
            )
        except subprocess.TimeoutExpired as error:
            told = "\n".join(host.told("ray.log") for host in self.hosts)
            raise TimeoutError(f"the cluster does not have {number} nodes:\n{told}") from error

    def _ray_start(
        self,
        host: Host,
        own: Sequence[str],
        cpus: int,
        gpus: int,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        words = [f"--node-ip-address={host.address}", f"--num-cpus={cpus}", f"--num-gpus={gpus}"]
        words += [f"--object-store-memory={STORE}", "--block"]
        with host.log("ray.log") as log:
            host.start(
                *(RAY, "start", *own, *words),
                environment={**self.environment, **(environment or {})},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        if "--head" in own:
            self._wait_for_port(host)

    def _wait_for_port(self, host: Host) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            try:
                host.run("bash", "-c", f"exec 3<>/dev/tcp/{host.address}/{PORT}")
            except subprocess.CalledProcessError:
                time.sleep(0.2)
            else:
                return
        raise TimeoutError(f"no Ray head started on {host.name}")


@contextmanager
def ray_on_hosts(folder: Path, names: Sequence[str] = ()) -> Iterator[RayOnHosts]:
    """A cluster of a head and workers with one CPU core each.

    Args:
        folder: Where each host keeps files of its own.
        names: The workers.
    """
    with Hosts(folder) as hosts:
        cluster = RayOnHosts(hosts)
        for name in names:
            cluster.join(name)
        cluster.wait_for_nodes(len(names) + 1)
        yield cluster
