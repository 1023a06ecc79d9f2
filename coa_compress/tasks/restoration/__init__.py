"""Any network from images to images, on images of one's own or on those that come along."""
