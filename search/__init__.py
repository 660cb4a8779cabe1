"""The search for a better configuration: its space, the study and its workers, the trials, and what came out."""
