"""The CAM methods, one function each, and the table of them."""
