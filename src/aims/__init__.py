"""AIMS: attested identity, short-lived credentials, standard authorization and a stop for AI agents."""

__version__ = "0.1.0"
