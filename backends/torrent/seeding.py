"""When uploads end: the limits of seeding.

A limit that was reached stays reached: there are no upload slots any more until the source is opened anew.
"""

from __future__ import annotations

import logging
from typing import Any

from nbdfs.backends.torrent.pieces import Pieces
from nbdfs.backends.torrent.session import Session

log = logging.getLogger(__name__)


class Seeding:
    """Ends uploads once `seed_ratio` or `seed_time` of the options is reached."""

    def __init__(self, session: Session, pieces: Pieces, options: Any) -> None:
        self._session = session
        self._pieces = pieces
        self._options = options
        self._quiet = False  # no more uploads

    def look(self, status: Any) -> None:
        """See whether a limit is reached."""
        options = self._options
        if self._quiet:
            return
        downloaded = max(status.all_time_download, 1)
        shared = options.seed_ratio and status.all_time_upload >= options.seed_ratio * downloaded
        waited = options.seed_time and status.finished_duration.total_seconds() >= options.seed_time
        if shared or (waited and self._pieces.present == len(self._pieces.here)):
            self._quiet = True
            self._session.session.apply_settings({"unchoke_slots_limit": 0})
            log.info("torrent: uploads stopped, the limit of seeding is reached")
