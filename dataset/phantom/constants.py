"""The classes, sizes and names of the phantom. Nothing is imported here: the command answers `--help` at once."""

VERSION = 2  # raise it when the same parameters no longer give the same bytes
CLASSES: tuple[str, ...] = ("COVID", "Lung_Opacity", "Normal", "Viral Pneumonia")
PROPORTIONS = (17, 28, 48, 7)  # per cent, as in the real database
SOURCES = tuple(f"https://phantom.example/site-{letter}" for letter in "abcd")
GROUP_PATTERN = r"^(.+-P\d+)-\d+$"  # on a file's stem; the first group is the patient
FOLDERS = ("images", "masks", "lesion_masks")
IMAGE_SIZE, MASK_SIZE = 299, 256
MINIMUM_SIZE, MAXIMUM_SIZE = 64, 2048
MINIMUM_COUNT = 8  # with fewer images a class could be empty
MAX_FILMS = 3  # per patient
