"""Rim: the server. Composition only: settings, listeners, processes; every decision lives in a layer below."""
