"""Drawing of maps: overlays, contact sheets, mean maps and the summary figure."""
