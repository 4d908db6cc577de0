"""Networks that turn images into feature maps, and what each states about itself."""
