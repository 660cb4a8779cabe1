"""Search for a better configuration: the space, the study and its workers, and the results."""
