"""A study at an address, on a node that trains its trials."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tuner.spec.plugins import CODE_FOLDER
from tuner.study.remote.place import local_studies_dir, remote_place
from tuner.study.remote.working_copy import WorkingCopy


@dataclass(frozen=True)
class RemoteFolder:
    """Where storage has the folder of a study, for any node.

    Attributes:
        address: Where it has the studies.
        prefix: Name of the study's folder there, or of its confirmation's in it.
    """

    address: str
    prefix: str

    @classmethod
    def of(cls, folder: Path) -> RemoteFolder | None:
        """Where storage has a folder of this machine; None for one that is here only."""
        place = remote_place(folder)
        return None if place is None else cls(place.store.address, place.prefix)

    def here(self) -> Path:
        """Where this node works on it; the folder is made if need be."""
        folder = local_studies_dir(self.address) / self.prefix
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def fetch(self, name: str) -> None:
        """Bring a file of it, which need not be there.

        Raises:
            StoreError: if the storage does not answer.
        """
        self._copy(self.prefix).fetch_one(name)

    def here_with_code(self, code: Path | None) -> tuple[Path, Path | None]:
        """Where this node works on it, and where it has the code of the user's own, fetched.

        Args:
            code: Where the driver has that code; None if there is none.

        Raises:
            StoreError: if the storage does not answer.
        """
        if code is None:
            return self.here(), None
        # a confirmation uses its study's
        copy = self._copy(f"{self.prefix.partition('/')[0]}/{CODE_FOLDER}")
        copy.fetch()
        return self.here(), copy.folder

    def check_writable(self) -> None:
        """Check that this node can write to the storage.

        Raises:
            StoreError: if it cannot.
        """
        self._copy(self.prefix).store.check_writable()

    def _copy(self, prefix: str) -> WorkingCopy:
        folder = local_studies_dir(self.address) / prefix
        place = remote_place(folder)
        assert place is not None
        return WorkingCopy(place.store, folder, prefix)
