"""The wire format of private sums: what a server asks of each image, and what a client answers.

- a query that asks: `ask`, which question for each bank, and its arrays, a record for each part;
- its answer: `sums`, a record for each block, and in `about` how many records they are of.

What comes from a client is checked here: shape, type, finite values, and that no sum is longer
than so many records can make it.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, RecordDict

from fl.wire.arrays import pack_banks, read_header, read_rows
from fl.wire.envelope import ABOUT, Sender, pack_reply, unreadable
from src.federated.types import BankRefused
from src.privacy.queries import Block, MeanQuery, MomentQuery, ScoreQuery, SumQuery
from src.privacy.runner import Sums

ASK, SUMS = "ask", "sums"
QUERIES: dict[str, type[SumQuery]] = {
    query.__name__: query for query in (MeanQuery, MomentQuery, ScoreQuery)
}
ROUNDING = 1e-9  # relative, by which a sum may pass its records' limits


def pack_queries(queries: Mapping[str, SumQuery]) -> RecordDict:
    """What is asked of each bank's images, as records of a request."""
    header: dict[str, dict[str, Any]] = {}
    arrays: dict[str, dict[str, np.ndarray]] = {}
    for name, query in queries.items():
        plain = {}
        for part, value in vars(query).items():
            if isinstance(value, np.ndarray):
                arrays.setdefault(part, {})[name] = value
            else:
                plain[part] = value
        header[name] = {"kind": type(query).__name__, "plain": plain}
    packed = {f"{ASK}-{part}": pack_banks(by_bank) for part, by_bank in arrays.items()}
    return RecordDict({ASK: ConfigRecord({"json": json.dumps(header)}), **packed})


def unpack_queries(content: RecordDict) -> dict[str, SumQuery]:
    """The inverse of `pack_queries`; bank name -> query."""
    header = json.loads(str(content[ASK]["json"]))
    arrays: dict[str, dict[str, np.ndarray]] = {name: {} for name in header}
    for part, record in content.array_records.items():
        if part.startswith(f"{ASK}-"):
            for name, array in record.items():
                arrays[name][part.removeprefix(f"{ASK}-")] = read_rows(array)
    return {
        name: QUERIES[query["kind"]](**query["plain"], **arrays[name])
        for name, query in header.items()
    }


def pack_sums(sender: Sender, sums: Mapping[str, Sums]) -> RecordDict:
    """A client's answer: bank name -> sums over its records."""
    content = pack_reply(sender, records=json.dumps({n: s.records for n, s in sums.items()}))
    for number in range(max((len(s.vectors) for s in sums.values()), default=0)):
        content[f"{SUMS}-{number}"] = pack_banks(
            {name: s.vectors[number] for name, s in sums.items() if number < len(s.vectors)}
        )
    return content


def unpack_sums(content: RecordDict, queries: Mapping[str, SumQuery]) -> dict[str, Sums]:
    """The inverse of `pack_sums`, for the banks that the client holds of those asked for.

    Raises:
        BankRefused: the answer cannot be read, or is not what a client should answer.
    """
    try:
        records: dict[str, Any] = json.loads(str(content[ABOUT]["records"]))
        found = {}
        for name, count in records.items():
            if type(count) is not int or count < 1:
                raise ValueError(f"{count!r} records of {name}")
            vectors = tuple(
                _sum(content, number, name, block, count)
                for number, block in enumerate(queries[name].blocks)
            )
            found[name] = Sums(vectors, count)
        return found
    except BankRefused:
        raise
    except Exception as error:
        raise unreadable(error) from error


def _sum(content: RecordDict, number: int, name: str, block: Block, records: int) -> np.ndarray:
    array = content.array_records[f"{SUMS}-{number}"][name]
    shape, dtype, _ = read_header(array)
    if shape != (block.size,) or dtype != np.float64:
        raise BankRefused(f"its sum of {block.name} is {dtype} {shape}, not [{block.size}] float64")
    vector = read_rows(array)
    if not np.isfinite(vector).all():
        raise BankRefused(f"its sum of {block.name} holds NaN or infinite values")
    if np.linalg.norm(vector) > records * block.limit * (1 + ROUNDING):
        raise BankRefused(f"its sum of {block.name} is longer than {records} records can make it")
    return vector
