"""Class activation maps: computing them, scoring them against masks, and drawing them."""
