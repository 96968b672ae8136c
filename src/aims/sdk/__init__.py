"""What agents and services import: their identity, and how to prove it and check that of others.

``workload_client`` speaks to the node's Workload API (or that of any other SPIFFE implementation) over a unix socket.
"""
