"""COCO files to batches: annotation files, transforms, the data set, its loaders, and the generated shapes data set."""
