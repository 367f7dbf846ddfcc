"""From a source file to a new one that holds only what the allow-list permits; and the verdicts."""
