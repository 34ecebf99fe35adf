"""Senders, names and sizes that messages carry, for hypothesis and for plain tests."""

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fl.wire.envelope import STAGES, Sender
from src.federated.types import ClientStats

printable = st.characters(exclude_categories=("C", "Z"), include_characters=" ")
names = st.text(printable, min_size=1, max_size=12)
counts = st.integers(0, 2**40)
radii = st.floats(0, 1e6)
stats = st.builds(ClientStats, counts, counts, counts)
seconds = st.fixed_dictionaries(dict.fromkeys(STAGES, st.floats(0, 1e5)))
senders = st.builds(Sender, st.integers(0, 2**31), names, names, seconds)

SENDER = Sender(3, "f", "v", {"features": 1.0, "coreset": 0.5})

scalars = st.one_of(st.integers(-1, 2**62), st.floats(), st.text(max_size=9), st.booleans())
odd_records = st.one_of(
    st.dictionaries(st.sampled_from(["client", "id", "reason", "b"]), scalars).map(ConfigRecord),
    st.just(MetricRecord({"b": 1.5})),
    hnp.arrays(np.float32, hnp.array_shapes(min_dims=0, max_side=3)).map(
        lambda rows: ArrayRecord({"b": Array(rows)})
    ),
)
