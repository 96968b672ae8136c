"""Samples: what a newcomer would write with the SDK, run as real processes by the demo and by tests.

``tool`` is an MCP server, ``agent`` calls it, ``attacker`` does what the tool must refuse; the other modules say what
they are in their first line.
"""
