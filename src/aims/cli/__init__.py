"""Rim: the command line; every command parses, calls and prints, and decides nothing."""
