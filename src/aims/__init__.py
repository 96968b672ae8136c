"""AIMS: attested identity, short-lived credentials, standard authorization and a stop for AI agents."""
