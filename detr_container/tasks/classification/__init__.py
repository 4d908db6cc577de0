"""Classification: what is trained, evaluated and predicted of images with one label each."""
