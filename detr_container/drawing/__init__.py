"""Images with boxes, attention and curves."""
