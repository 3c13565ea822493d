"""Point tracks of a driving video: followed through each clip (Lucas-Kanade, dense flow, other trackers), given a z, drawn."""
