"""A directory a video: what was asked, what came out, on which machine; and who is making it. ``python -m
experiments.records`` lists, shows, verifies and prunes them.
"""

from experiments.records.checksum import sha256
from experiments.records.code import code_version, library_hash
from experiments.records.identity import new_record, todays_code, todays_key
from experiments.records.record import SCHEMA_VERSION, TIMED, Record, Status, untimed
from experiments.records.store import RecordStore, maker, store_of
from experiments.records.weights import weights_hash, weights_id

__all__ = [
    "SCHEMA_VERSION",
    "TIMED",
    "Record",
    "RecordStore",
    "Status",
    "code_version",
    "library_hash",
    "maker",
    "new_record",
    "sha256",
    "store_of",
    "todays_code",
    "todays_key",
    "untimed",
    "weights_hash",
    "weights_id",
]
