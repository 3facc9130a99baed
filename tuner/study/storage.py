"""Where the record is kept: an Optuna storage in one SQLite file, written in whole transactions.

Optuna's own `RDBStorage` commits every attribute by itself, so a process that is killed between
a score and what followed from it leaves one without the other, and a report costs five commits.
Here all that belongs together is one transaction. The tables are Optuna's, so that
`optuna.load_study` and optuna-dashboard read the file at any time, and one more holds the
decisions.

A transaction that others depend on is durable: it is on the disk (fsync) before it returns.
One that is not survives the end of the process, but a power loss may take it, together with all
that came after it: of SQLite's log a prefix remains, never a hole.
"""

from __future__ import annotations

import datetime
import json
import math
import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from optuna.distributions import distribution_to_json
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import inspect, text
from sqlalchemy.exc import SQLAlchemyError

from training.durable_write import PARTIAL, sync_folder
from tuner.errors import StudyError
from tuner.study.commands import study_command

BUSY_SECONDS = 60.0
"""How long a write waits for another process that reads or copies the record."""

NETWORK_FILE_SYSTEMS = ("nfs", "cifs", "smb", "fuse", "lustre", "gpfs", "beegfs", "ceph", "9p")
"""First letters of file systems on which processes of two machines share no memory, as SQLite's
write-ahead log needs it."""

_DECISIONS = """
CREATE TABLE IF NOT EXISTS segtune_decisions (
    decision_id INTEGER PRIMARY KEY,
    time REAL NOT NULL,
    trial INTEGER NOT NULL,
    epoch INTEGER NOT NULL,
    action TEXT NOT NULL,
    reason TEXT NOT NULL
)
"""


class TransactionalStorage(RDBStorage):
    """An Optuna storage with one writer, whose writes are transactions.

    Reads are Optuna's own; what a transaction holds is seen by them when it ends.

    Args:
        path: The SQLite file; made if it is not there.

    Raises:
        StudyError: if the file is damaged or cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._pending: list[tuple[str, Sequence[Any]]] = []
        self._depth = 0
        self._durable = False
        self._failure: StudyError | None = None
        self._writer: sqlite3.Connection | None = None
        self._level = ""
        try:
            if path.is_file() and path.stat().st_size:
                _check_integrity(path)
            else:
                _create(path)
            super().__init__(
                f"sqlite:///{path}", engine_kwargs={"connect_args": {"timeout": BUSY_SECONDS}}
            )
        except (SQLAlchemyError, RuntimeError, OSError) as error:
            raise unreadable(path, error) from error
        self.reload()

    def reload(self) -> None:
        """Look how many trials there are, as another process may have added some.

        Raises:
            StudyError: if the file is damaged.
        """
        try:
            with self.engine.connect() as connection:
                last = connection.execute(text("SELECT MAX(trial_id) FROM trials")).scalar()
        except SQLAlchemyError as error:
            raise unreadable(self._path, error) from error
        self._last_trial_id: int = last or 0

    @property
    def failure(self) -> StudyError | None:
        """Why the record could not be written; nothing is written after that."""
        return self._failure

    def close(self) -> None:
        """Let go of the file, and put all of it into the one file if nobody else reads it."""
        self.scoped_session.remove()
        self.engine.dispose()
        if self._writer is not None:
            with suppress(sqlite3.OperationalError):  # one who reads it keeps its log alive
                self._writer.execute("PRAGMA busy_timeout = 0")
                self._writer.execute("PRAGMA journal_mode = delete")
            self._writer.close()
            self._writer = None

    @contextmanager
    def transaction(self, *, durable: bool = True) -> Iterator[None]:
        """Commit all writes of the block together at its end, or none if it raises.

        Blocks may be nested; the outermost commits, durably if any of them asks for it.

        Raises:
            StudyError: if the disk is full or the file cannot be written.
        """
        self._depth += 1
        self._durable = self._durable or durable
        try:
            yield
        except BaseException:
            self._pending.clear()
            raise
        else:
            if self._depth == 1 and self._pending:
                self._commit()
        finally:
            self._depth -= 1
            if not self._depth:
                self._durable = False

    def _commit(self) -> None:
        if self._failure is not None:
            raise self._failure
        writer = None
        try:
            writer = self._open_writer()
            # FULL syncs the log with each commit, NORMAL leaves that to the next one
            level = "FULL" if self._durable else "NORMAL"
            if level != self._level:
                writer.execute(f"PRAGMA synchronous = {level}")
                self._level = level
            writer.execute("BEGIN IMMEDIATE")
            for statement, values in self._pending:
                writer.execute(statement, values)
            writer.execute("COMMIT")
        except sqlite3.Error as error:
            if writer is not None and writer.in_transaction:
                writer.execute("ROLLBACK")
            self._failure = StudyError(
                f"the record {self._path} cannot be written ({error}): make room on its disk, "
                f"then go on with `{study_command('resume', self._path.parent)}`; all that was "
                "decided before is kept"
            )
            raise self._failure from error
        finally:
            self._pending.clear()

    def _open_writer(self) -> sqlite3.Connection:
        """The connection that writes, opened by the first write: a reader changes nothing."""
        if self._writer is None:
            writer = sqlite3.connect(self._path, timeout=BUSY_SECONDS, isolation_level=None)
            mode = "delete" if _on_network_file_system(self._path) else "wal"
            writer.execute(f"PRAGMA journal_mode = {mode}")
            writer.execute(_DECISIONS)
            self._writer, self._level = writer, ""
        return self._writer

    def _write(self, statement: str, *values: Any) -> None:
        if self._depth:
            self._pending.append((statement, values))
        else:
            with self.transaction():
                self._pending.append((statement, values))

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """Add a trial with all that its template holds."""
        assert template_trial is not None
        trial_id = self._last_trial_id = self._last_trial_id + 1
        with self.transaction():
            self._write(
                "INSERT INTO trials (trial_id, number, study_id, state, datetime_start) "
                "SELECT ?, COUNT(*), ?, ?, ? FROM trials WHERE study_id = ?",
                *(trial_id, study_id, template_trial.state.name, _stored_time(), study_id),
            )
            for name, value in template_trial.params.items():
                distribution = template_trial.distributions[name]
                self._write(
                    "INSERT INTO trial_params (trial_id, param_name, param_value, "
                    "distribution_json) VALUES (?, ?, ?, ?)",
                    *(trial_id, name, distribution.to_internal_repr(value)),
                    distribution_to_json(distribution),
                )
            for key, attribute in template_trial.user_attrs.items():
                self.set_trial_user_attr(trial_id, key, attribute)
        return trial_id

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Set an attribute of a trial."""
        self._write(
            "INSERT INTO trial_user_attributes (trial_id, key, value_json) VALUES (?, ?, ?) "
            "ON CONFLICT (trial_id, key) DO UPDATE SET value_json = excluded.value_json",
            *(trial_id, key, json.dumps(value)),
        )

    def set_trial_intermediate_value(
        self, trial_id: int, step: int, intermediate_value: float
    ) -> None:
        """Set the score of an epoch."""
        self._write(
            "INSERT INTO trial_intermediate_values (trial_id, step, intermediate_value, "
            "intermediate_value_type) VALUES (?, ?, ?, ?) ON CONFLICT (trial_id, step) DO UPDATE "
            "SET intermediate_value = excluded.intermediate_value, "
            "intermediate_value_type = excluded.intermediate_value_type",
            *(trial_id, step, *_stored_number(intermediate_value)),
        )

    def set_trial_state_values(
        self,
        trial_id: int,
        state: TrialState,
        values: Sequence[float] | None = None,
        *,
        ended: float | None = None,
    ) -> bool:
        """Set the state of a trial, and its final scores in place of those that it had.

        Unlike Optuna, a trial that has ended may run again.

        Args:
            trial_id: The trial.
            state: Its state.
            values: Its final scores; None removes them.
            ended: When it ended, in seconds since 1970; now by default.
        """
        with self.transaction():
            self._write("DELETE FROM trial_values WHERE trial_id = ?", trial_id)
            for objective, value in enumerate(values or ()):
                self._write(
                    "INSERT INTO trial_values (trial_id, objective, value, value_type) "
                    "VALUES (?, ?, ?, ?)",
                    *(trial_id, objective, *_stored_number(value)),
                )
            self._write(
                "UPDATE trials SET state = ?, datetime_complete = ? WHERE trial_id = ?",
                *(state.name, _stored_time(ended) if state.is_finished() else None, trial_id),
            )
        return True

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        """Set an attribute of the study that optuna-dashboard shows."""
        self._set_study_attr("study_user_attributes", study_id, key, value)

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        """Set an attribute of the study that Optuna reads."""
        self._set_study_attr("study_system_attributes", study_id, key, value)

    def _set_study_attr(self, table: str, study_id: int, key: str, value: Any) -> None:
        self._write(
            f"INSERT INTO {table} (study_id, key, value_json) VALUES (?, ?, ?) "
            "ON CONFLICT (study_id, key) DO UPDATE SET value_json = excluded.value_json",
            *(study_id, key, json.dumps(value)),
        )

    def last_written(self) -> float:
        """When the file was last written to, in seconds since 1970."""
        log = self._path.with_name(f"{self._path.name}-wal")
        written = [path.stat().st_mtime for path in (self._path, log) if path.is_file()]
        return max(written, default=time.time())

    def add_decision(self, at: float, trial: int, epoch: int, action: str, reason: str) -> None:
        """Append to the decisions."""
        self._write(
            "INSERT INTO segtune_decisions (time, trial, epoch, action, reason) "
            "VALUES (?, ?, ?, ?, ?)",
            *(at, trial, epoch, action, reason),
        )

    def decisions(self) -> list[tuple[float, int, int, str, str]]:
        """All decisions in their order: time, trial, epoch, action, reason."""
        with self.engine.connect() as connection:
            if not inspect(connection).has_table("segtune_decisions"):
                return []
            rows = connection.execute(
                text(
                    "SELECT time, trial, epoch, action, reason FROM segtune_decisions "
                    "ORDER BY decision_id"
                )
            )
            return [(row[0], row[1], row[2], row[3], row[4]) for row in rows]


def unreadable(path: Path, error: Exception) -> StudyError:
    """The error of a record that cannot be read."""
    reason = str(error).strip().splitlines()[0]
    return StudyError(
        f"the record {path} cannot be read: {reason}; nothing was changed: put back a copy of it, "
        "or keep its folder (trials/ has every checkpoint and metrics.csv) and start a new study"
    )


def refuse_lost_record(path: Path) -> None:
    """Refuse a folder that has trials but no record: a new study would overwrite them."""
    lost = not path.is_file() or not path.stat().st_size
    if lost and any((path.parent / "trials").glob("*")):
        raise unreadable(path, ValueError("it is gone or empty, but the study has trials"))


def _create(path: Path) -> None:
    """Create the file with Optuna's tables atomically.

    Another process may look at the study just then, and would begin to make them as well.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}")
    partial.unlink(missing_ok=True)
    try:
        tables = RDBStorage(f"sqlite:///{partial}")
        tables.scoped_session.remove()
        tables.engine.dispose()
        if path.is_file() and not path.stat().st_size:
            path.unlink()
        try:
            # unlike a rename, it leaves a file alone that has come meanwhile
            path.hardlink_to(partial)
        except FileExistsError:
            pass
        except OSError:  # a file system that knows no links
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    sync_folder(path.parent)


def _check_integrity(path: Path) -> None:
    """Refuse a damaged file before anything is written to it."""
    try:
        connection = sqlite3.connect(path, timeout=BUSY_SECONDS)
        try:
            (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise unreadable(path, error) from error
    if verdict != "ok":
        raise unreadable(path, ValueError(verdict))


def _stored_number(value: float) -> tuple[float | None, str]:
    """A number as Optuna's tables hold it."""
    if math.isnan(value):
        return None, "NAN"
    if math.isinf(value):
        return None, "INF_POS" if value > 0 else "INF_NEG"
    return float(value), "FINITE"


def _stored_time(seconds: float | None = None) -> str:
    """A time since 1970, or now, as Optuna's tables hold it: in UTC, without saying so."""
    moment = time.time() if seconds is None else seconds
    utc = datetime.datetime.fromtimestamp(moment, datetime.UTC).replace(tzinfo=None)
    return utc.isoformat(sep=" ", timespec="microseconds")


def _on_network_file_system(path: Path) -> bool:
    mounts = Path("/proc/self/mounts")
    if not mounts.is_file():
        return False
    folder = str(path.absolute().parent)
    found = ""
    kind = ""
    for line in mounts.read_text().splitlines():
        _, point, file_system, *_ = line.split()
        point = point.replace("\\040", " ")
        inside = folder == point or folder.startswith(point.rstrip(os.sep) + os.sep)
        if inside and len(point) >= len(found):
            found, kind = point, file_system
    return kind.startswith(NETWORK_FILE_SYSTEMS)
