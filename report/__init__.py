"""The HTML report of an evaluation: the inputs, facts, sections and gallery of its page."""
