"""Rim: the daemon on each host that starts agents and vouches for what it started.

A program proves nothing about itself: whatever it says, a copy can say too. So the node starts it::

    aims run --as NAME -- CMD   ->  launch.sock  ->  resolve, measure, compare, gate, exec
    the process asks for SVIDs  ->  workload.sock ->  the kernel's pidfd of the peer = the pidfd of a launch

What it gives out it gets from the server, over one client (`server_client`), by what the server says on one stream
(`watching` -> `server_state`). A process is a `tenant`; it has a `holding` for each entry that it meets, which
`issuing` fills; `cache` finds the tenant of a caller for the Workload API. `daemon` puts the parts together.

What that promises depends on uids and is said in the word `shared-uid`, `node-uid` or `agent-uid`. Under
`shared-uid` it keeps programs apart that do not attack each other, nothing more.
"""
