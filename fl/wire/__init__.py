"""The wire format: the only place that knows what messages carry.

A client answers these Flower actions: `query.holdings`, `query.curves`, `query.farthest`,
`query.sums`, `train` and `evaluate`. docs/reference/messages.md lists their contents.
"""
