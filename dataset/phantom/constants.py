"""The classes, sizes and names of the phantom. Nothing is imported here: the command answers `--help` at once."""

VERSION = 2  # raise it when the same parameters no longer give the same bytes
CLASSES: tuple[str, ...] = ("COVID", "Lung_Opacity", "Normal", "Viral Pneumonia")
SOURCES = tuple(f"https://phantom.example/site-{letter}" for letter in "abcd")
GROUP_PATTERN = r"^(.+-P\d+)-\d+$"  # on a file's stem; the first group is the patient
IMAGE_SIZE = 299  # default side in pixels
MINIMUM_SIZE, MAXIMUM_SIZE = 64, 2048
MINIMUM_COUNT = 8  # with fewer images a class could be empty
