"""One module for each grant type: what may be asked, and what right comes of it. They decide and write nothing."""
