"""Rim: the story that `aims demo` tells, with real processes on loopback."""
