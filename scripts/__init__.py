"""Programs for those who work on AIMS."""
