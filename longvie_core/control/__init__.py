"""Control signals: depth and point tracks of a driving video, as the network is to see them."""
