"""Models as plain modules: nothing distributed in here."""
