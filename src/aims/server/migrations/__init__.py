"""The history of the tables: one line of revisions, each with its way up and down.

A room that adds tables appends a file ``versions/NNNN_noun.py`` whose ``down_revision`` is the newest one before it,
and its ``store`` module to ``aims.server.database.STORES``. A test compares the result with the metadata.
"""
