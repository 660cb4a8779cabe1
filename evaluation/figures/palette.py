"""The colours of every figure."""

# Okabe and Ito's palette: distinct to colour-blind readers, and by lightness in print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
MEAN_COLOUR = "#666666"  # of means, baselines and reference lines
