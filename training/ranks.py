"""Processes of one training on this machine that something else has started."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment


@dataclass
class GivenRanks(ClusterEnvironment):
    """Which process of a training this one is, for Lightning, which then starts none itself.

    Args:
        rank: Which process this is, from 0.
        world: How many there are.
        port: Port of this machine at which they meet.
    """

    rank: int
    world: int
    port: int

    @property
    def creates_processes_externally(self) -> bool:
        """Whether the processes are there already."""
        return True

    @property
    def main_address(self) -> str:
        """Where they meet: they are all on one machine."""
        return "127.0.0.1"

    @property
    def main_port(self) -> int:
        """Port at which they meet."""
        return self.port

    @staticmethod
    def detect() -> bool:
        """Whether this environment is here by itself; it is never."""
        return False

    def world_size(self) -> int:
        """How many processes there are."""
        return self.world

    def set_world_size(self, size: int) -> None:
        """Nothing: it is given."""

    def global_rank(self) -> int:
        """Which process this is."""
        return self.rank

    def set_global_rank(self, rank: int) -> None:
        """Nothing: it is given."""

    def local_rank(self) -> int:
        """Which process of this machine this is, and its GPU."""
        return self.rank

    def node_rank(self) -> int:
        """Which machine this is; there is one."""
        return 0
