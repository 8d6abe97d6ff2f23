"""When uploads end: the limits of seeding.

Invariant: while a limit is reached there are no upload slots.  More that is downloaded may be passed on again.
"""

from __future__ import annotations

import logging
from typing import Any

from nbdfs.backends.torrent import Options
from nbdfs.backends.torrent.pieces import Pieces
from nbdfs.backends.torrent.session import Session

log = logging.getLogger(__name__)


class Seeding:
    """Ends uploads while `seed_ratio` or `seed_time` of the options is reached."""

    def __init__(self, session: Session, pieces: Pieces, options: Options) -> None:
        self._session = session
        self._pieces = pieces
        self._options = options
        self._quiet = False  # no uploads

    def look(self, status: Any, circle: Any = None) -> None:
        """See whether a limit is reached, by what was passed on in the torrent and in the circle of its readers."""
        options = self._options
        statuses = [status, circle] if circle else [status]
        downloaded = max(sum(each.all_time_download for each in statuses), 1)
        uploaded = sum(each.all_time_upload for each in statuses)
        shared = options.seed_ratio and uploaded >= options.seed_ratio * downloaded
        # Not `finished_duration`: a torrent that wants nothing is finished, though nothing is here yet.
        waited = options.seed_time and status.seeding_duration.total_seconds() >= options.seed_time
        quiet = bool(shared or (waited and self._pieces.present == len(self._pieces.here)))
        if quiet != self._quiet:
            self._quiet = quiet
            self._session.session.apply_settings({"unchoke_slots_limit": 0 if quiet else options.connections})
            log.info("torrent: uploads %s, as the limit of seeding says", "stopped" if quiet else "go on")
